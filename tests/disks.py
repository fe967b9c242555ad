"""Disks that fill up or can only be read, as root makes them; a test that may not mount is skipped, with the reason."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A small disk of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / ".somebody-elses"

    def fill(self) -> None:
        """Write until nothing fits any more."""
        with self._filler.open("wb", buffering=0) as file:
            for block in (1 << 20, 1 << 12, 1):
                with pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(block))

    def free(self) -> None:
        """Take that away again."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, size: str = "64m") -> Generator[Disk]:
    """A disk that is mounted at a folder, with what lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(folder, aside, symlinks=True, dirs_exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
    try:
        yield Disk(folder)
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What lies in a folder can be read and not written, from now on, by whoever opens a file there."""
    _mount("--bind", str(folder), str(folder))
    try:
        for _ in range(50):  # refused while somebody has a file open for writing, who came in between
            done = subprocess.run(["mount", "-o", "remount,bind,ro", folder], capture_output=True, text=True)
            if done.returncode == 0:
                break
            time.sleep(0.01)
        assert done.returncode == 0, done.stderr
        yield
    finally:
        _unmount(folder)


def _mount(*arguments: str) -> None:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)  # this process may have a database open there


def check_mountable() -> None:
    """Skip the test where nothing can be mounted."""
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder), "4k"):
        pass
