"""Log lines for a collector: OpenTelemetry's names, what they are about, and no secrets."""

import json
import logging
import time
from datetime import datetime
from typing import Any

import pytest

from dass.errors import InputError
from flows.cli.main import run_command
from tasks.workspace.log_format import VARIABLE, JsonFormatter, log_attributes, log_format
from tasks.workspace.progress import working


def line(message: str, level: int = logging.INFO, error: Exception | None = None) -> dict[str, Any]:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("dass", level, "/src/file.py", 7, message, None, info)
    found: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return found


def test_a_record_is_a_line_of_opentelemetry_s_data_model() -> None:
    said = line("two\nlines", logging.WARNING)
    assert said.keys() == {"Timestamp", "SeverityText", "SeverityNumber", "Body", "Attributes", "Resource"}
    assert (said["Body"], said["SeverityText"], said["SeverityNumber"]) == ("two\nlines", "WARN", 13)
    assert datetime.fromisoformat(said["Timestamp"]).utcoffset() is not None
    assert said["Resource"]["service.name"] == "dass"
    assert said["Attributes"] == {"code.file.path": "/src/file.py", "code.line.number": 7}
    assert [line("", level)["SeverityNumber"] for level in (logging.DEBUG, logging.INFO, logging.ERROR)] == [5, 9, 17]


def test_it_says_which_run_version_and_layer_it_is_about() -> None:
    with log_attributes({"run.id": "r1", "model": "tiny", "version": None}):
        with log_attributes({"layer": 3}):
            inside = line("pruned")["Attributes"]
        outside = line("next")["Attributes"]
    assert (inside["dass.run.id"], inside["dass.model"], inside["dass.layer"]) == ("r1", "tiny", 3)
    assert "dass.layer" not in outside
    assert "dass.version" not in inside
    assert "dass.run.id" not in line("after")["Attributes"]


def test_an_exception_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "planted-secret")
    said = line("failed", logging.ERROR, ValueError("login planted-secret refused"))["Attributes"]
    assert said["exception.type"] == "ValueError"
    assert "planted-secret" not in json.dumps(said)


def test_a_command_that_fails_says_so_in_one_line_of_json(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "text")  # the option sets it
    assert run_command(["show", "--log-format", "json", "--workspace", str(tmp_path / "none")]) == 2
    (said,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert said["SeverityText"] == "ERROR"
    assert said["Body"].startswith("dass: ")
    assert run_command(["--log-format", "xml", "show"]) == 2
    assert "DASS_LOG_FORMAT is 'xml': expected text or json." in capsys.readouterr().err


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "logfmt")
    with pytest.raises(InputError, match="DASS_LOG_FORMAT is 'logfmt': expected text or json"):
        log_format()


def test_what_another_thread_says_meanwhile_is_about_the_same(caplog: pytest.LogCaptureFixture) -> None:
    formatter = JsonFormatter()
    said: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(json.loads(formatter.format(record)))

    kept, logger = Kept(), logging.getLogger("dass")
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        with log_attributes({"layer": 5}), working("Waiting"):
            time.sleep(2.5)  # it is told after two seconds
    finally:
        logger.removeHandler(kept)
    assert [each["Attributes"]["dass.layer"] for each in said] == [5]
