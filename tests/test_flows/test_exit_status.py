"""Every error has its status and one line; what is ours to mend says so."""

import errno
import io
import json
import sqlite3
import sys
import zlib
from pathlib import Path

import pytest
import sqlalchemy

from dass.errors import InfrastructureError, InputError, NumericalError
from dass.masks.proof import ProofError
from flows.cli import output
from flows.exit_status import BAD_INPUT, FAILED, FAULT, INFRASTRUCTURE, judged
from tasks.registry.ledger import BrokenLedger
from tasks.registry.tracking import TrackingError, TrackingRefusal
from tasks.versioning.inputs import InputsChangedError
from tasks.versioning.repository import VersioningError

STATEMENT = sqlalchemy.exc.OperationalError("INSERT INTO runs", {"a": 1}, sqlite3.OperationalError("no such table: x"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("x"), BAD_INPUT),
        (NumericalError("x"), BAD_INPUT),
        (TrackingRefusal("x"), BAD_INPUT),
        ("m\udcff".encode, BAD_INPUT),
        (ProofError("x"), FAILED),
        (BrokenLedger("x"), FAILED),
        (InputsChangedError("x"), FAILED),
        (InfrastructureError("x"), INFRASTRUCTURE),
        (TrackingError("x"), INFRASTRUCTURE),
        (VersioningError("x"), INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), INFRASTRUCTURE),
        (ConnectionResetError("reset"), INFRASTRUCTURE),
        (TimeoutError(), INFRASTRUCTURE),
        (MemoryError(), INFRASTRUCTURE),
        (STATEMENT, INFRASTRUCTURE),
        (RecursionError("maximum recursion depth exceeded"), FAULT),
        (zlib.error("Error -3"), FAULT),
        (IndexError("list index out of range"), FAULT),
        (AssertionError(), FAULT),
    ],
)
def test_every_error_has_its_status_and_one_line(error: object, status: int) -> None:
    if not isinstance(error, Exception):
        with pytest.raises(UnicodeEncodeError) as caught:
            error("utf-8")  # type: ignore[operator]
        error = caught.value
    found, message = judged(error)
    assert found == status
    assert message
    assert "\n" not in message
    for raw in ("INSERT", "RecursionError", "zlib", "IndexError", "UnicodeEncodeError", "Error -3"):
        assert raw not in message


def test_a_fault_of_ours_says_where_and_that_it_is_one() -> None:
    with pytest.raises(TypeError) as caught:
        output.print_json({1, 2})  # no JSON
    assert judged(caught.value)[1].startswith("This is a fault of dass itself (flows/cli/output.py, line ")


def test_a_name_that_is_not_utf8_is_told_in_escaped_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(FileNotFoundError(errno.ENOENT, "No such file", "/m\udcff"))[1] == r"/m\udcff: No such file."
    assert judged(InputError("There is no /m\udcff."))[1] == r"There is no /m\udcff."
    output.tell("m\udcff")
    assert capsys.readouterr().err == "m\\udcff\n"


def test_a_message_holds_no_secret() -> None:
    message = judged(ConnectionError("postgresql:///x?password=s3cr3t refused; password='s3cr3t'"))[1]
    assert "s3cr3t" not in message


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True))
    output.escape_what_cannot_be_shown()
    output.print_json({"α é": "m\udcff"})
    output.tell("α é")
    text = sys.stdout.buffer.getvalue().decode(encoding)  # type: ignore[union-attr]
    assert json.loads(text[: text.rindex("}") + 1]) == {"α é": "m\udcff"}


def test_no_module_of_ours_is_forgotten() -> None:
    """Errors of dass and tasks that are none of the above end with 1: every one of them is about a rule or a proof."""
    root = Path(__file__).parents[2]
    plain = {
        line.split("(")[0].removeprefix("class ")
        for file in [*root.glob("dass/**/*.py"), *root.glob("tasks/**/*.py")]
        for line in file.read_text().splitlines()
        if line.startswith("class ") and line.endswith(("(Exception):", "(RuntimeError):"))
    }
    leaving_its_module = {name for name in plain if not name.startswith("_")} - {"Overtaken"}
    assert leaving_its_module == {
        "BrokenLedger",
        "DamagedFile",
        "ForeignChampion",
        "InfrastructureError",
        "InputsChangedError",
        "ProofError",
        "SignatureError",
    }
