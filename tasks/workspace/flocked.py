"""A file that one process at a time holds, for what lives and dies with one machine: no heartbeat, only flock.

A process that ends, in whatever way, lets go by itself. The file stays, and holds a line that says who had it last.
"""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dass.errors import InputError
from tasks.workspace.locked import OTHERS, OURSELVES, told_holders

_ATTEMPTS, _ATTEMPT_SECONDS = 3, 0.02  # who only looks holds it for a moment
_POLL_SECONDS, _SHORT_POLL_SECONDS = 0.5, 0.05
_TELL_SECONDS = 20.0
_LONGEST = 500

logger = logging.getLogger("dass")


class Flocked:
    """A file that this process holds until `release`, or its end."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        """Give it back."""
        os.close(self._handle)

    def keep_behind_exec(self) -> None:
        """Hold it also when this process becomes another program."""
        os.set_inheritable(self._handle, True)


def hold(
    path: Path, note: str, what: str, *, wait: float = 0.0, tell: Callable[[str], object] = lambda _: None
) -> Flocked:
    """Take a file, or refuse.

    Args:
        path: the file; its folder exists. Every user may hold it.
        note: says who has it, in a line: others' messages show it.
        what: is held, for messages.
        wait: seconds that it may be waited for.
        tell: gets a line where it is.

    Raises:
        InputError: another process has it, for longer than may be waited; the message names it.
        OSError: the file cannot be opened.
    """
    handle = _opened(path)
    try:
        if not take_flock(handle):
            if wait > 0:
                tell(f"{what} is held by {_said(handle)}: waiting for it, up to {wait:.0f} s")
            deadline = time.monotonic() + wait
            while not take_flock(handle):
                if time.monotonic() >= deadline:
                    waited = f" after {wait:.0f} s" if wait > 0 else ""
                    raise InputError(f"{what} is held by {_said(handle)}{waited}. Wait for it, or stop it.")
                time.sleep(min(wait, _POLL_SECONDS))
        text = note.encode()[:_LONGEST]
        os.pwrite(handle, text, 0)
        os.truncate(handle, len(text))
    except BaseException:
        os.close(handle)
        raise
    return Flocked(handle)


@contextmanager
def flocked(path: Path, what: str) -> Iterator[None]:
    """Hold a file or folder while others wait for as long as it takes; they are told for whom when that is long.

    Args:
        path: a file, made where it is not there, or a folder.
        what: is held, for the message.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not take_flock(handle):
            _wait(handle, path, what)
        yield
    finally:
        os.close(handle)


def _wait(handle: int, path: Path, what: str) -> None:
    """Take a file that another process or thread has. Who that is is said once, and again when it changes or stops."""
    said, since = {OURSELVES}, time.monotonic()  # another thread of ours has its own progress
    while not take_flock(handle):
        if time.monotonic() - since > _TELL_SECONDS and (told := told_holders(path)) not in said:
            logger.warning("%s is held by %s: waiting for it", what, told)
            said |= {told, OTHERS}  # who was named may have gone in between
        time.sleep(_SHORT_POLL_SECONDS)


def _opened(path: Path) -> int:
    """The file, made for all users where it is not there. A link is not followed: others may write in its folder."""
    how = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:  # without O_CREAT: in a folder like /tmp Linux refuses that for a file of another user
            handle = os.open(path, how)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
            raise OSError(f"{path} is no file")
        try:
            handle = os.open(path, how | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        os.fchmod(handle, 0o666)
        return handle


def take_flock(file: int | IO[str]) -> bool:
    """Lock an open file for this process alone; False: another has it, and not only to look."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_ATTEMPT_SECONDS)
        else:
            return True
    return False


def _said(handle: int) -> str:
    """What the holder says of itself. Whoever may write there may have written anything."""
    text = os.pread(handle, _LONGEST, 0).decode(errors="replace")
    return "".join(each if each.isprintable() else " " for each in text).strip() or "a process that has just begun"
