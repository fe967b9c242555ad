"""Waiting for a download: as long as it goes on, and not longer than DASS_TIMEOUT when it stands still."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tasks.workspace.patience import overdue

T = TypeVar("T")
_LOOK_SECONDS = 0.5


def in_time(work: Callable[[], T], seconds: float, folder: Path | None = None) -> T:
    """Do the work in a thread of its own, which is left to itself when it does not end in time.

    Args:
        work: what is to be done.
        seconds: how long it may take.
        folder: what grows in here is progress, from which the time starts anew.

    Raises:
        Overdue: it did not end, and nothing grew, for so long.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="dass-download")
    thread.start()
    growth = _Growth(folder, seconds)
    while thread.is_alive():
        thread.join(min(_LOOK_SECONDS, seconds / 4))
        if thread.is_alive() and growth.stands_still():
            raise overdue(seconds)
    if failed:
        raise failed[0]
    return done[0]


def end_when_still(process: "subprocess.Popen[str]", seconds: float, folder: Path) -> tuple[str, str]:
    """What a process wrote to stdout and stderr; it is killed when nothing grew in `folder` for so long.

    Raises:
        Overdue: it was killed.
    """
    growth = _Growth(folder, seconds)
    while True:
        try:
            return process.communicate(timeout=min(_LOOK_SECONDS, seconds / 4))
        except subprocess.TimeoutExpired:
            if growth.stands_still():
                process.kill()
                process.communicate()
                raise overdue(seconds) from None
        except BaseException:  # interrupted: it would write on into a folder that is being removed
            process.kill()
            process.wait()
            raise


class _Growth:
    def __init__(self, folder: Path | None, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._size, self._since = size_of(folder), time.monotonic()

    def stands_still(self) -> bool:
        size = size_of(self._folder)
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > self._seconds


def size_of(folder: Path | None) -> int:
    """Bytes in a folder; files come and go while they are counted."""
    total = 0
    for root, _, names in os.walk(folder) if folder else ():
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
