"""What `dass` logs: lines on standard error, as many as -q and -v ask for, and a file for each run."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from tasks.workspace.folder import Workspace
from tasks.workspace.log_format import JSON, JsonFormatter, log_format
from tasks.workspace.progress import TERMINAL
from tasks.workspace.redaction import RedactingFilter, redacted

_LOG = logging.getLogger("dass")
_KEPT = 20
_LARGEST = 5 << 20
_said_from = logging.INFO


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error as it is then: a progress bar puts itself in its place, and lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _formatter(text: str, times: str | None = None) -> logging.Formatter:
    return JsonFormatter() if log_format() == JSON else logging.Formatter(text, times)


def say_from(level: int) -> None:
    """Say records of this level and above on standard error. Call before the command starts."""
    global _said_from
    _said_from = level


def log_to_terminal() -> None:
    """Send the log of `dass` to standard error, without secrets."""
    known = next((handler for handler in _LOG.handlers if handler.name == TERMINAL), None)
    if known is None and not _LOG.handlers:  # whoever calls from Python may have a log of his own
        known = _ToStandardError()
        known.name = TERMINAL
        known.setFormatter(_formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        _LOG.addHandler(known)
    if known is not None:
        known.setLevel(_said_from)
    _LOG.setLevel(min(_said_from, logging.INFO))  # a file has what -q does not say
    if not any(isinstance(known, RedactingFilter) for known in _LOG.filters):
        _LOG.addFilter(RedactingFilter())


@contextmanager
def log_of_run(ws: Workspace) -> Iterator[Path]:
    """Keep what is logged meanwhile in a file of .dass/logs, and how it ended. The newest twenty files are kept.

    Call inside `workspace_lock`.

    Yields:
        The file, which is there as soon as something is logged.
    """
    folder = ws.private / "logs"
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("*.log*"))[: 1 - _KEPT]:
        with suppress(OSError):
            old.unlink()
    path = folder / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}.log"
    handler = _RunLog(path, maxBytes=_LARGEST, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(_formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(RedactingFilter())
    _LOG.addHandler(handler)
    try:
        _tell(handler, f"{' '.join(sys.argv)} in {ws.root}")
        yield path
        _tell(handler, "ended")
    except BaseException as error:
        _tell(handler, "".join(traceback.format_exception(error)).rstrip(), logging.ERROR)
        raise
    finally:
        _LOG.removeHandler(handler)
        with suppress(OSError):  # what the disk did not take is not taken now
            handler.close()


class _RunLog(RotatingFileHandler):
    """A run's log. Where the disk takes no more of it the run goes on without, and says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        if self in _LOG.handlers:
            _LOG.removeHandler(self)
            _LOG.warning("%s is not written on (%s)", self.baseFilename, sys.exc_info()[1])


def _tell(handler: logging.Handler, text: str, level: int = logging.INFO) -> None:
    """Say something to the file alone."""
    handler.handle(logging.LogRecord("dass", level, __file__, 0, redacted(text), None, None))
