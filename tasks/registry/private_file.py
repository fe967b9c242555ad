"""Files for their owner only: read when nobody else can have read or replaced them."""

import os
import pwd
import shlex
import stat
from pathlib import Path

from dass.errors import InputError


def read_private(path: Path, what: str, largest: int) -> bytes:
    """A file's bytes, when it is this user's, of mode 0600 or stricter, in a folder that only its owner writes.

    Args:
        path: the file; a link is followed.
        what: what it holds, for messages: "the signing key".
        largest: bytes that are read at most.

    Raises:
        FileNotFoundError: there is none.
        InputError: others could read or replace it, it is no file or larger, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = os.fstat(file.fileno())  # of what is read, whatever the name means by now
            if not stat.S_ISREG(found.st_mode) or found.st_size > largest:
                raise InputError(f"{path} is no file of at most {largest} bytes: expected {what}.")
            _check_owner(path, found, what)
            for folder in (path.parent, Path(os.path.realpath(path)).parent):
                check_folder(folder, what)
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected {what}.") from None


def check_folder(folder: Path, what: str) -> None:
    """Raise InputError when others could replace the files of a folder.

    In a folder like /tmp (sticky) they cannot: there everybody renames and removes only files of their own.
    """
    found = os.stat(folder)
    if found.st_uid not in (os.geteuid(), 0):
        raise InputError(
            f"{folder} belongs to {_user(found.st_uid)}, who could replace {what}. Keep it in a folder of your own."
        )
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise InputError(
            f"{folder} has mode {mode}: others could replace {what}. Run: chmod go-w {shlex.quote(str(folder))}"
        )


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else a pipe would never open


def _check_owner(path: Path, found: os.stat_result, what: str) -> None:
    if found.st_uid != os.geteuid():
        owner, user = _user(found.st_uid), _user(os.geteuid())
        raise InputError(f"{path} belongs to {owner} and this is {user}: expected {what} in a file of your own.")
    if found.st_mode & 0o177:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise InputError(
            f"{path} has mode {mode}: {what} is for its owner only. Run: chmod 600 {shlex.quote(str(path))}"
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
