"""How much lies in folders, and how much goes with them: a file with several names is there once."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Size:
    """What lies somewhere.

    Attributes:
        bytes: of the files' contents.
        files: how many there are, links to folders among them.
    """

    bytes: int = 0
    files: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.bytes + other.bytes, self.files + other.files)


class Counted:
    """Adds up sizes of several places: what a place before has is not counted again, under whatever name."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def size_of(self, *paths: Path) -> Size:
        """What lies there and was not counted yet. Links are not followed; what goes meanwhile is not there."""
        bytes_, files = 0, 0
        for found in _stats(paths):
            inode = found.st_dev, found.st_ino
            if inode not in self._seen:
                self._seen.add(inode)
                bytes_ += found.st_size
                files += 1
        return Size(bytes_, files)


def size_of(*paths: Path) -> Size:
    """What lies in files and folders together."""
    return Counted().size_of(*paths)


def freed_by_removing(paths: Iterable[Path]) -> int:
    """Bytes that are free when all of these files and folders are gone: a file that keeps a name elsewhere stays."""
    names: dict[tuple[int, int], list[int]] = {}
    for found in _stats(paths):
        of = names.setdefault((found.st_dev, found.st_ino), [0, found.st_nlink, found.st_size])
        of[0] += 1
    return sum(size for gone, links, size in names.values() if gone >= links)


def in_words(size: int) -> str:
    """Bytes in decimal units: 512 B, 1.2 MB."""
    value = float(size)
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {_UNITS[-1]}"


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """Of every file and link."""
    waiting: list[str] = []
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if path.is_dir() and not path.is_symlink():
            waiting.append(str(path))
        else:
            yield found
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)
                except OSError:
                    continue
