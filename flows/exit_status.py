"""What a command that failed says, and the status it ends with."""

import errno
import os
import re
import sqlite3

from dass.errors import InputError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_DISK_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")


def judged(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error. Ours say what to do; others are named, and DASS_DEBUG=1 shows them whole."""
    from typer.exceptions import TyperException

    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, TyperException):
        return BAD_INPUT, f"{error.format_message()} See: dass --help"
    if refused := _refused_by_the_disk(error):
        return BAD_INPUT, f"{refused}. Free space or permissions are needed there, then run again."
    if type(error).__module__.startswith(("dass.", "tasks.")):
        return FAILED, str(error)
    return FAILED, f"{type(error).__name__}: {error} (DASS_DEBUG=1 shows where)"


def _refused_by_the_disk(error: BaseException | None) -> str | None:
    """What could not be written, when that is why `error` came about: full, read-only or not ours."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(_DISK_SQLITE):
            return f"a database: {error}"
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers write in Rust
            number = int(match[1])
            return os.strerror(number) if number in _DISK else None
        error = error.__cause__ or error.__context__
    return None
