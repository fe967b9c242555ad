"""Texts from files, wheels and the hub, and every way in which one can be wrong."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dass.errors import InputError
from tasks.sources import unpack
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pin
from tasks.workspace.settings import Source
from tests.hub import COMMIT, hub

WIKI = {
    "uri": "pypi://exllamav3==1.6.5/exllamav3/conversion/standard_cal_data/wiki.utf8",
    "sha256": "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
}


def read(path: Path, **fields: Any) -> list[str]:
    return read_documents(Source(uri=str(path), **fields)).texts


def test_a_plain_text_is_one_long_document(tmp_path: Path) -> None:
    (tmp_path / "a.utf8").write_text("one\n\ntwo\n", encoding="utf-8")
    documents = read_documents(Source(uri=str(tmp_path / "a.utf8")))
    assert documents.texts == ["one\n\ntwo\n"]
    assert documents.sha256 == hashlib.sha256(b"one\n\ntwo\n").hexdigest()


def test_every_jsonl_row_is_a_document(tmp_path: Path) -> None:
    content = '{"text": "one\\n", "n": 1}\n\n{"text": "zwei ü"}\n'
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content.encode()))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.json.gz") == ["one\n", "zwei ü"]


def test_every_parquet_row_is_a_document(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one", "two"], "n": [1, 2]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="body") == ["one", "two"]


def parquet(table: pyarrow.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, **options)
    return stream.getvalue()


ROWS = ["one\n", 'zwei "ü", 2']
JSONL = "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(ROWS)).encode()
ARRAY = json.dumps([{"text": text} for text in ROWS], indent=1).encode()
CSV = 'n,text\r\n0,"one\n"\r\n1,"zwei ""ü"", 2"\r\n'.encode()
TABLE = parquet(pyarrow.table({"n": [0, 1], "text": ROWS}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.JSONL", JSONL),
        ("a.ndjson", JSONL.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("a.txt", JSONL),
        ("a", JSONL),
        ("a.json", ARRAY),
        ("a.jsonl", ARRAY),
        ("a.txt", ARRAY),
        ("a.csv", CSV),
        ("a.CSV", CSV.replace(b"\r\n", b"\n")),
        ("a.tsv", CSV.replace(b"n,text", b"n\ttext").replace(b"0,", b"0\t").replace(b"1,", b"1\t")),
        ("a.txt", TABLE),
        ("a.parquet.gz", gzip.compress(TABLE, mtime=0)),
        ("a.csv.bz2", bz2.compress(CSV)),
        ("a.jsonl.XZ", lzma.compress(JSONL)),
        ("a.jsonl.zst", pyarrow.compress(JSONL, "zstd", asbytes=True)),
        ("a.jsonl", gzip.compress(JSONL, mtime=0)),
    ],
)
def test_rows_are_read_whatever_a_file_is_called(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ROWS


def test_a_text_from_windows_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert read(tmp_path / "a.txt") == ["one\n\ntwo\n"]


@pytest.mark.parametrize(
    "text", ["{'a': 1}\n{}\n", '{"a": 1}\nand prose\n', "[ ] to do\n", "GGUF is a format, PAR1 and BZh9 are signs"]
)
def test_a_text_that_looks_like_data_at_its_start_is_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.md").write_text(text)
    assert read(tmp_path / "a.md") == [text]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "text".encode("utf-16"), "a.txt is UTF-16 text: save it as UTF-8"),
        ("a.txt", "text".encode("utf-16-le"), "NUL byte"),
        ("a.txt", b"%PDF-1.7\n", "is a PDF"),
        ("a.zip", b"PK\x03\x04...", "is a zip file: unpack it first"),
        ("a.txt", b"<!DOCTYPE html><title>Not found</title>", "is an HTML page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        ("a.feather", b"ARROW1\0\0....", r"Arrow \(Feather\) file: save it as parquet"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "compressed twice"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "damaged or cut off"),
        ("a.txt.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 30, "damaged or cut off"),
        ("a.txt.xz", lzma.compress(b"text" * 99)[:-9], "damaged or cut off"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd\xff\xff\xff", "damaged or cut off"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', r"line 2: 'text' holds half a character .*\\ud800"),
        ("a.jsonl", b'{"text": "x", "text": "y"}\n', "line 1 holds 'text' twice"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply"),
        ("a.json", b"[" * 100_000, "nested too deeply|not JSON"),
        ("a.csv", b"n,body\n1,x\n", "has no column 'text', only n, body"),
        ("a.csv", b"n,text\n1,x,y\n", "line 2 has 3 fields, and its first line 2"),
        ("a.csv", b'n,text\n1,"x\n', "is damaged"),
        ("a.csv", b"text,text\nx,y\n", "2 columns 'text'"),
        ("a.parquet", parquet(pyarrow.table({"text": ["x", None]})), "row 2: 'text' is null, expected text"),
        ("a.parquet", parquet(pyarrow.table({"text": [{"a": "x"}]})), "row 1: 'text' is dict"),
        ("a.parquet", parquet(pyarrow.table({"text": pyarrow.array([], pyarrow.string())})), "holds no text"),
        ("a.parquet", parquet(pyarrow.table([["x"], ["y"]], names=["text", "text"])), "2 columns 'text'"),
        ("a.parquet", TABLE[:-30] + TABLE[-8:], "not a whole parquet file"),
    ],
)
def test_what_holds_no_text_is_refused_by_its_content(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_settings_that_a_file_does_not_have_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"a\.txt is plain text, which has no column 'body'"):
        read(tmp_path / "a.txt", column="body")
    for name in ("split", "subset", "data_files"):
        with pytest.raises(InputError, match=f"is a file, and {name} is for hub data sets"):
            read(tmp_path / "a.txt", **{name: "train"})


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match="is a pipe or a device"):
        read(tmp_path / "a.txt")


def test_a_small_file_does_not_become_a_large_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_ALWAYS", 1 << 20)  # 64 MiB take their time
    size = 2 << 20
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 32, pyarrow.int32()), ["x" * (size // 32)])
    files = {
        "a.txt.gz": gzip.compress(b" " * size),
        "a.txt.xz": lzma.compress(b" " * size),
        "a.txt.zst": pyarrow.compress(b" " * size, "zstd", asbytes=True),
        "a.parquet": parquet(pyarrow.table({"text": repeated}), compression="zstd"),
        "b.parquet": parquet(pyarrow.table({"text": [" " * size]}), compression="zstd", use_dictionary=False),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} \({len(content)} bytes\) unpacks to more than 1048576 bytes"):
            read(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as sparse:
        sparse.truncate(20 << 30)
    with pytest.raises(InputError, match="has 21474836480 bytes: at most 1073741824 bytes of text are read"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.jsonl", b"\n", "holds no text"),
        ("a.txt", b"abc\xff", r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl line 1 is no object"),
        ("a.jsonl", b'{"body": "x", "n": 1}\n', r"line 1 has no column 'text', only body, n\. Set column"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: 'text' is int, expected text"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is not a whole parquet file"),
        ("a.jsonl.gz", b"no gzip", r"damaged or cut off"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_parquet_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["one"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'text', only body, n\. Set column"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 1: 'n' is int"):
        read(tmp_path / "a.parquet", column="n")


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_a_text_that_changed_since_it_was_pinned_is_refused(tmp_path: Path) -> None:
    source = Source(uri="a.txt")
    (tmp_path / "a.txt").write_text("before")
    pinned = pin(source, tmp_path)
    assert read_documents(source, pinned, tmp_path).texts == ["before"]
    (tmp_path / "a.txt").write_text("after!")
    with pytest.raises(InputError, match=r"dass\.lock\.json says"):
        read_documents(source, pinned, tmp_path)


def test_a_text_with_another_digest_than_asked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=f"expected {'0' * 64}"):
        read(tmp_path / "a.txt", sha256="0" * 64)


def test_a_hub_data_set_s_rows_are_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of that name in the workspace is for whoever leaves the revision out; one below the current folder never.
    (tmp_path / "org" / "texts").mkdir(parents=True)
    (tmp_path / "org" / "texts" / "train.jsonl").write_text('{"text": "local"}\n')
    monkeypatch.chdir(tmp_path)
    files = {"train.jsonl": b'{"text": "one"}\n{"text": "two"}\n', "test.jsonl": b'{"text": "three"}\n'}
    pinned = {"revision": COMMIT}
    with hub("org/texts", files, monkeypatch):
        assert read_documents(Source(uri="org/texts@main"), pinned, tmp_path).texts == ["one", "two"]
        assert read_documents(Source(uri="org/texts@main", split="test"), pinned, tmp_path).texts == ["three"]
        assert read_documents(Source(uri="org/texts"), pinned, tmp_path / "workspace").texts == ["one", "two"]
        with pytest.raises(InputError, match=r"no column 'body', only text"):
            read_documents(Source(uri="org/texts@main", column="body"), pinned, tmp_path)
        with pytest.raises(InputError, match="is a folder"):
            read_documents(Source(uri="org/texts"), None, tmp_path)


def test_a_hub_data_set_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="org/absent is no local path, and the hub does not give it") as error:
        read_documents(Source(uri="org/absent"), None, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="org/absent is no local path"):
        pin(Source(uri="org/absent"), tmp_path, "dataset")


@pytest.mark.real
def test_the_default_evaluation_text_is_one_long_document(tmp_path: Path) -> None:
    documents = read_documents(Source.model_validate(WIKI), pin(Source.model_validate(WIKI)), tmp_path)
    assert [len(text) for text in documents.texts] == [2_087_714]
    assert documents.sha256 == WIKI["sha256"]
