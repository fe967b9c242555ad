"""The log as people read it, or as JSON lines for a collector: OpenTelemetry's log data model, a record a line."""

import json
import logging
import os
import platform
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from dass.errors import InputError
from tasks.workspace.redaction import redacted

VARIABLE = "DASS_LOG_FORMAT"
TEXT, JSON = "text", "json"

# OpenTelemetry's numbers; 9 to 12 are INFO's, and so on.
_SEVERITIES = ((logging.CRITICAL, "FATAL", 21), (logging.ERROR, "ERROR", 17), (logging.WARNING, "WARN", 13))
_INFO, _DEBUG = ("INFO", 9), ("DEBUG", 5)

_attributes: ContextVar[dict[str, Any]] = ContextVar("log attributes", default={})  # noqa: B039  (never changed)


def log_format() -> str:
    """What DASS_LOG_FORMAT asks for.

    Raises:
        InputError: it is neither.
    """
    asked = os.environ.get(VARIABLE) or TEXT
    if asked not in (TEXT, JSON):
        raise InputError(f"{VARIABLE} is {asked[:80]!r}: expected {TEXT} or {JSON}.")
    return asked


def is_json() -> bool:
    """Whether lines are JSON."""
    return os.environ.get(VARIABLE) == JSON


@contextmanager
def log_attributes(attributes: Mapping[str, Any]) -> Iterator[None]:
    """While entered, every record says these of itself: run, model, version, layer. In text nothing of it shows.

    Args:
        attributes: each name gets "dass." in front. None says nothing.
    """
    said = {f"dass.{name}": value for name, value in attributes.items() if value is not None}
    before = _attributes.set({**_attributes.get(), **said})
    try:
        yield
    finally:
        _attributes.reset(before)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: Timestamp (UTC), SeverityText, SeverityNumber, Body, Attributes, Resource."""

    def __init__(self) -> None:
        super().__init__()
        self._resource = {
            "service.name": "dass",
            "service.version": version("dass"),
            "host.name": platform.node(),
            "process.pid": os.getpid(),
        }

    def format(self, record: logging.LogRecord) -> str:
        severity, number = _severity(record.levelno)
        attributes = {**_attributes.get(), "code.file.path": record.pathname, "code.line.number": record.lineno}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            attributes |= {
                "exception.type": type(error).__qualname__,
                "exception.message": redacted(str(error)),
                "exception.stacktrace": redacted("".join(traceback.format_exception(error))),
            }
        said = {
            "Timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "SeverityText": severity,
            "SeverityNumber": number,
            "Body": record.getMessage(),
            "Attributes": attributes,
            "Resource": self._resource,
        }
        return json.dumps(said, ensure_ascii=False, default=str)


def _severity(level: int) -> tuple[str, int]:
    for least, text, number in _SEVERITIES:
        if level >= least:
            return text, number
    return _INFO if level >= logging.INFO else _DEBUG
