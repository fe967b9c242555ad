"""Files that reach the disk while more of them is written: else everybody waits at the end of each for all of it."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_BYTES = 1 << 27
"""Written before a thread begins to bring them to disk. An operating system left alone begins at gigabytes."""


class SyncBehind:
    """Writes files one after the other. Where its context ends well, all of them are on disk.

    One thread syncs, behind by a file at most.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dass-sync")
        # A disk says only once that it failed, so each is asked how it went.
        self._of_this_file: list[Future[None]] = []
        self._of_the_one_before: list[Future[None]] = []

    def __enter__(self) -> "SyncBehind":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._finish_the_one_before()

    @contextmanager
    def file(self, path: Path, is_new: bool = False) -> Iterator["SyncedFile"]:
        """A file to write. Where its context ends it is complete, and on its way to disk.

        Args:
            path: it is made, or emptied.
            is_new: it may not be there.

        Raises:
            FileExistsError: it is there, and may not.
            OSError: the disk is full or fails, for this file or the one before it.
        """
        target = path.open("xb" if is_new else "wb")
        try:
            yield SyncedFile(self, target)
            target.flush()
            self._finish_the_one_before()
        except BaseException:
            self._thread.submit(target.close)  # not before what still syncs it
            raise
        self._of_the_one_before = [*self._of_this_file, self._thread.submit(_sync_and_close, target)]
        self._of_this_file = []

    def begin(self, target: BinaryIO) -> bool:
        """Begin to sync what the file has so far; False: the thread is busy."""
        if not all(each.done() for each in (*self._of_the_one_before, *self._of_this_file)):
            return False
        self._of_this_file.append(self._thread.submit(os.fsync, target.fileno()))
        return True

    def _finish_the_one_before(self) -> None:
        for each in self._of_the_one_before:
            each.result()


class SyncedFile:
    """One of those files."""

    def __init__(self, behind: SyncBehind, target: BinaryIO) -> None:
        self._behind, self._target = behind, target
        self._since = 0

    def write(self, part: bytes | memoryview) -> None:
        """More of it. The bytes may change behind this."""
        self._since += self._target.write(part)
        if self._since >= _BYTES and self._behind.begin(self._target):
            self._since = 0


def _sync_and_close(target: BinaryIO) -> None:
    with target:
        os.fsync(target.fileno())
