"""What a command that failed says, and the status it ends with.

0    done
1    a rule, a proof or a check of the work itself failed
2    bad input: another value, name, file or login is needed
3    infrastructure: a server, a database, the disk or memory gave out; the same command may succeed later
4    a fault of dass itself
130  interrupted
"""

import errno
import os
import re
import sqlite3
import traceback
from pathlib import Path

from dass.errors import InfrastructureError, InputError, NumericalError
from tasks.workspace.redaction import redacted

DONE, FAILED, BAD_INPUT, INFRASTRUCTURE, FAULT, INTERRUPTED = 0, 1, 2, 3, 4, 130

KINDS = {
    FAILED: "failed",
    BAD_INPUT: "bad input",
    INFRASTRUCTURE: "infrastructure",
    FAULT: "fault",
    INTERRUPTED: "interrupted",
}
"""How `--json` names them."""

_OURS = Path(__file__).resolve().parents[1]
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_DISK_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
# Whose errors tell of something that is not there or does not answer.
_PEERS = (
    *("requests", "urllib3", "httpx", "httpcore", "http", "ssl", "socket", "urllib", "aiohttp", "websockets"),
    *("sqlalchemy", "sqlite3", "psycopg2", "alembic", "mlflow", "prefect", "dvc", "dvc_objects", "dvc_data"),
    *("huggingface_hub", "fsspec", "botocore", "subprocess"),
)


def judged(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error: one line that can be printed anywhere and holds no secret.

    Errors of ours say what to do. Of others the kind is told; DASS_DEBUG=1 shows them whole.
    """
    status, message = _judged(error)
    return status, " ".join(printable(redacted(message)).split())


def printable(text: str) -> str:
    """The text, with what is no character (a file name that is not UTF-8) in escaped form."""
    return text.encode("utf-8", "backslashreplace").decode()


def _judged(error: Exception) -> tuple[int, str]:
    from typer.exceptions import TyperException

    if isinstance(error, (InputError, NumericalError)):
        return BAD_INPUT, str(error)
    if isinstance(error, TyperException):
        return BAD_INPUT, f"{error.format_message()} See: dass --help"
    if refused := _refused_by_the_disk(error):
        return INFRASTRUCTURE, f"{refused}. Free space or permissions are needed there, then run again."
    if isinstance(error, InfrastructureError):
        return INFRASTRUCTURE, str(error)
    if type(error).__module__.startswith(("dass.", "tasks.")):
        return FAILED, str(error)
    if isinstance(error, UnicodeError):
        return BAD_INPUT, _not_text(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return INFRASTRUCTURE, f"Out of memory ({_short(error)}). Use fewer samples, shorter windows or another device."
    if isinstance(error, OSError) and error.filename is not None:
        return INFRASTRUCTURE, f"{_name(error.filename)}: {error.strerror}."
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _PEERS:
        return INFRASTRUCTURE, f"{_short(error)}. DASS_DEBUG=1 shows where."
    return FAULT, (
        f"This is a fault of dass itself{_where(error)}, not of what you gave it. "
        "Please report it with what DASS_DEBUG=1 shows."
    )


def _refused_by_the_disk(error: BaseException | None) -> str | None:
    """What could not be written, when that is why `error` came about: full, read-only or not ours."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{_name(error.filename)}: {error.strerror}" if error.filename else str(error.strerror)
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(_DISK_SQLITE):
            return f"a database: {error}"
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers write in Rust
            number = int(match[1])
            return os.strerror(number) if number in _DISK else None
        error = error.__cause__ or error.__context__
    return None


def _name(filename: object) -> str:
    return os.fsdecode(filename) if isinstance(filename, (str, bytes, os.PathLike)) else str(filename)


def _not_text(error: UnicodeError) -> str:
    """Names what is not UTF-8, which most often is a file's name."""
    what = getattr(error, "object", None)
    if isinstance(what, bytes):
        what = what.decode("utf-8", "backslashreplace")
    told = f": {what if len(what) <= 200 else what[:200] + '…'!s}" if isinstance(what, str) else ""
    return f"A name or text is not UTF-8{told}. Rename the file, or write the text in UTF-8."


def _short(error: BaseException) -> str:
    """An error of others on one line: no statements, no parameters."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    text = text.partition("[SQL:")[0].partition("(Background on")[0].strip().rstrip(".")
    return (text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}") or type(error).__name__


def _where(error: BaseException) -> str:
    """The last place in our own code that the error went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_OURS) and path.relative_to(_OURS).parts[0] in ("dass", "tasks", "flows"):
            return f" ({path.relative_to(_OURS)}, line {frame.lineno})"
    return ""
