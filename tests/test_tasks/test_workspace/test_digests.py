"""What is remembered of a file is that file's, whatever is done to it."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dass.digests import Digests, digests_of
from tasks.workspace import digests
from tasks.workspace.digests import LEAST_BYTES, known_digests, read_digests, remember, unchanged_by

ONE, TWO = b"1" * LEAST_BYTES, b"2" * LEAST_BYTES


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were read for their digests, in order. Nothing is remembered at first."""
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []
    from_bytes = digests_of

    def counted(path: Path, md5: bool = False) -> Digests:
        read.append(path)
        return from_bytes(path, md5)

    monkeypatch.setattr(digests, "digests_of", counted)
    return read


@pytest.fixture
def file(tmp_path: Path, reads: list[Path]) -> Path:
    """A large file whose digest is remembered."""
    path = tmp_path / "x"
    path.write_bytes(ONE)
    assert known_digests(path).sha256 == sha256(ONE)
    assert reads == [path]
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_with_its_time(path: Path, content: bytes) -> None:
    """As `touch -d` afterwards: same size, same time; in place, so the inode is the same, too."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def replace_with_its_time(path: Path, content: bytes) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def test_a_file_is_read_once(file: Path, reads: list[Path]) -> None:
    assert known_digests(file).sha256 == sha256(ONE)
    (file.parent / "link").symlink_to(file)
    assert known_digests(file.parent / "link").sha256 == sha256(ONE)
    assert reads == [file]


def test_an_md5_that_nobody_asked_for_before_is_read_with_the_other(file: Path, reads: list[Path]) -> None:
    assert known_digests(file, md5=True).md5 == known_digests(file, md5=True).md5 == hashlib.md5(ONE).hexdigest()
    assert known_digests(file).sha256 == sha256(ONE)
    assert reads == [file, file]


@pytest.mark.parametrize("change", [write_with_its_time, replace_with_its_time, Path.write_bytes])
def test_another_content_is_noticed(change: Callable[[Path, bytes], object], file: Path) -> None:
    change(file, TWO)
    assert known_digests(file).sha256 == sha256(TWO)
    change(file, ONE)
    assert known_digests(file).sha256 == sha256(ONE)


def test_a_change_right_behind_the_writing_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "x"
    for _ in range(20):  # within a tick of the clock both would bear the same times
        path.write_bytes(ONE)
        remember(path, Digests(len(ONE), sha256(ONE)))
        write_with_its_time(path, TWO)
        assert known_digests(path).sha256 == sha256(TWO)


def test_what_was_written_is_not_read(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "writing").mkdir()
    (tmp_path / "writing" / "x").write_bytes(ONE)
    remember(tmp_path / "writing" / "x", Digests(len(ONE), sha256(ONE), "md5"))
    (tmp_path / "writing").rename(tmp_path / "made")
    assert known_digests(tmp_path / "made" / "x", md5=True) == Digests(len(ONE), sha256(ONE), "md5")
    assert reads == []


def test_digests_of_other_bytes_are_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "x").write_bytes(ONE)
    remember(tmp_path / "x", Digests(len(ONE) - 1, "of", "less"))
    assert known_digests(tmp_path / "x").sha256 == sha256(ONE)


def test_links_names_and_rights_are_forgotten_unless_they_are_our_own(file: Path, reads: list[Path]) -> None:
    with unchanged_by([file]):
        os.link(file, file.with_name("second"))
        file.with_name("second").chmod(0o444)
    assert known_digests(file.with_name("second")).sha256 == sha256(ONE)
    assert reads == [file]
    file.with_name("second").chmod(0o644)
    known_digests(file)
    assert reads == [file, file]


def test_bytes_that_change_meanwhile_are_noticed(file: Path) -> None:
    with unchanged_by([file]):
        file.write_bytes(TWO)
    assert known_digests(file).sha256 == sha256(TWO)
    with unchanged_by([file]):
        file.unlink()


def test_who_must_not_trust_reads_every_time(file: Path, reads: list[Path]) -> None:
    assert read_digests(file).sha256 == read_digests(file).sha256 == sha256(ONE)
    assert reads == [file, file, file]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"state": {}}', b"\xff"])
def test_a_damaged_note_is_none(damage: bytes, file: Path, reads: list[Path]) -> None:
    for note in (file.parent / "cache" / "digests").iterdir():
        note.write_bytes(damage)
    assert known_digests(file).sha256 == sha256(ONE)
    assert reads == [file, file]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_note_of_somebody_else_is_none(file: Path) -> None:
    for note in (file.parent / "cache" / "digests").iterdir():
        lie = json.loads(note.read_text())
        lie["digests"]["sha256"] = sha256(TWO)
        note.write_text(json.dumps(lie))
        assert known_digests(file).sha256 == sha256(TWO)  # that is what a note is worth
        os.chown(note, 12345, -1)
    assert known_digests(file).sha256 == sha256(ONE)


def test_small_files_leave_no_note(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "x").write_bytes(b"small")
    assert known_digests(tmp_path / "x").sha256 == known_digests(tmp_path / "x").sha256 == sha256(b"small")
    assert not (tmp_path / "cache").exists()


def test_notes_are_not_more_than_a_bound(tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_MOST_FILES", 8)
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(ONE)
        known_digests(tmp_path / f"{number}")
    assert len(list((tmp_path / "cache" / "digests").iterdir())) <= 8
    reads.clear()
    known_digests(tmp_path / "11")
    assert reads == []


def test_a_place_that_cannot_be_written_costs_reads_only(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "no folder"))
    (tmp_path / "x").write_bytes(ONE)
    assert known_digests(tmp_path / "x") == known_digests(tmp_path / "x")
    assert reads == [tmp_path / "x"] * 2
