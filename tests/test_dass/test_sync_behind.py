"""Files are complete and on disk where the context ends, and a disk that fails is told."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from dass import sync_behind
from dass.sync_behind import SyncBehind

PARTS = [bytes([number]) * 1000 for number in range(40)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_behind, "_BYTES", 3000)


def write(folder: Path, files: int = 3) -> None:
    with SyncBehind() as behind:
        for number in range(files):
            with behind.file(folder / str(number)) as target:
                for part in PARTS[number:]:
                    target.write(memoryview(part))


def test_every_file_holds_its_parts_in_order(tmp_path: Path) -> None:
    tmp_path.joinpath("1").write_bytes(b"of before" * 10_000)

    write(tmp_path)

    assert [tmp_path.joinpath(str(number)).read_bytes() for number in range(3)] == [
        b"".join(PARTS[number:]) for number in range(3)
    ]


def test_each_is_synced_while_it_is_written_and_last_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {}
    sync = os.fsync

    def note(handle: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
        sizes.setdefault(name, []).append(os.fstat(handle).st_size)
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(SyncBehind, "begin", _in_step(SyncBehind.begin))

    write(tmp_path)

    assert [sizes[str(number)][-1] for number in range(3)] == [40_000, 39_000, 38_000]
    assert sizes["0"][0] < 40_000


@pytest.mark.parametrize("at", [1, 4, 40, 80, 118])
def test_a_disk_that_fails_once_is_told(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever sync it was: a disk does not say it a second time."""
    sync, calls = os.fsync, iter(range(1_000))
    monkeypatch.setattr(sync_behind, "_BYTES", 1)
    monkeypatch.setattr(SyncBehind, "begin", _in_step(SyncBehind.begin))

    def fail(handle: int) -> None:
        if next(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(tmp_path)


def _in_step(begin: Callable[[SyncBehind, BinaryIO], bool]) -> Callable[[SyncBehind, BinaryIO], bool]:
    """Done before more is written: so the syncs are as many each time."""

    def wait(self: SyncBehind, target: BinaryIO) -> bool:
        _settle(self)
        begun = begin(self, target)
        _settle(self)
        return begun

    return wait


def _settle(behind: SyncBehind) -> None:
    for each in (*behind._of_the_one_before, *behind._of_this_file):
        each.exception()


def test_what_stops_the_writing_is_raised_and_the_files_are_closed(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(KeyError), SyncBehind() as behind, behind.file(tmp_path / "half") as target:
        target.write(b"half" * 2000)
        raise KeyError

    assert len(os.listdir("/proc/self/fd")) == open_before
