"""Digests of files that come from bytes which pass anyway: one read, one copy or the writing itself serves everyone."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.sync_behind import SyncBehind

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Digests:
    """What a file's bytes have for digests.

    Attributes:
        size: how many bytes they were made of.
        sha256: hex.
        md5: hex; None where nobody asked for it. It names a file, and secures nothing.
    """

    size: int
    sha256: str
    md5: str | None = None


class Hashing:
    """Digests of bytes in the order in which they come; two of them are made in two threads."""

    def __init__(self, md5: bool = False) -> None:
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._beside = ThreadPoolExecutor(1) if md5 else None

    def update(self, part: Any) -> None:
        """More bytes, of anything that has the buffer interface. They may change behind this."""
        if not memoryview(part).nbytes:  # which cannot be cast
            return
        view = memoryview(part).cast("B")
        self._size += len(view)
        if self._md5 is None or self._beside is None:
            self._sha256.update(view)
            return
        made = self._beside.submit(self._md5.update, view)
        self._sha256.update(view)
        made.result()

    def digests(self) -> Digests:
        """Of all bytes. No more may come."""
        if self._beside is not None:
            self._beside.shutdown()
        return Digests(self._size, self._sha256.hexdigest(), self._md5.hexdigest() if self._md5 else None)


def digests_of(path: Path, md5: bool = False) -> Digests:
    """Read a file, once."""
    hashing = Hashing(md5)
    part = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(part):
            hashing.update(part[:size])
    return hashing.digests()


def copy_file(origin: Path, target: Path, md5: bool = False, behind: SyncBehind | None = None) -> Digests:
    """Copy a file's bytes to a file that is not there yet, and give their digests: they are read once.

    Args:
        origin: the file; a link is followed.
        target: the copy.
        md5: whether the digests have one, too.
        behind: brings the copy to disk beside whatever comes next; None: it is on disk at the end.
    """
    hashing = Hashing(md5)
    part = memoryview(bytearray(_CHUNK_BYTES))
    with ExitStack() as stack:
        source = stack.enter_context(origin.open("rb", buffering=0))
        copy = stack.enter_context((behind or stack.enter_context(SyncBehind())).file(target, is_new=True))
        while size := source.readinto(part):
            copy.write(part[:size])
            hashing.update(part[:size])
    return hashing.digests()
