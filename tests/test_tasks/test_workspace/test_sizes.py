"""Bytes on the disk: a file with several names is there once, and goes with its last name."""

import os
from pathlib import Path

from dass.files import clear_leftovers, leftovers, remove_whole
from tasks.workspace.sizes import Counted, Size, freed_by_removing, in_words, size_of


def test_a_file_with_two_names_is_counted_once_and_freed_with_the_last(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1" * 100)
    os.link(tmp_path / "a" / "x", tmp_path / "b" / "y")
    (tmp_path / "b" / "z").write_bytes(b"1" * 10)
    (tmp_path / "b" / "link").symlink_to("/")
    assert size_of(tmp_path / "a", tmp_path / "b", tmp_path / "none").bytes - len("/") == 110
    counted = Counted()
    assert counted.size_of(tmp_path / "a") == Size(100, 1)
    assert counted.size_of(tmp_path / "b").bytes == 10 + len("/")
    assert freed_by_removing([tmp_path / "a"]) == 0
    assert freed_by_removing([tmp_path / "b"]) == 10 + len("/")
    assert freed_by_removing([tmp_path / "a", tmp_path / "b"]) == 110 + len("/")


def test_what_is_removed_is_whole_or_gone(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "file").touch()
    remove_whole(tmp_path / "folder")
    remove_whole(tmp_path / "not there")
    assert list(tmp_path.iterdir()) == []
    half = tmp_path / ".folder.999999999.partial"
    half.mkdir()
    assert leftovers(tmp_path) == [half]
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_told_in_decimal_units() -> None:
    assert [in_words(each) for each in (0, 999, 1000, 1_234_567, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "5.0 TB",
    ]
