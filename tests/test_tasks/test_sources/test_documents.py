"""Texts from files, wheels and the hub, and every way in which one can be wrong."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dass.errors import InputError
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pin
from tasks.workspace.settings import Source

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
    # The datasets library takes a folder of that name below the current one for the repository.
    (tmp_path / "org" / "texts").mkdir(parents=True)
    (tmp_path / "org" / "texts" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "org" / "texts" / "test.jsonl").write_text('{"text": "three"}\n')
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "workspace"
    assert read_documents(Source(uri="org/texts"), None, elsewhere).texts == ["one", "two"]
    assert read_documents(Source(uri="org/texts", split="test"), None, elsewhere).texts == ["three"]
    with pytest.raises(InputError, match=r"no column 'body', only text"):
        read_documents(Source(uri="org/texts", column="body"), None, elsewhere)


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
