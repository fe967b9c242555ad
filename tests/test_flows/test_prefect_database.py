"""The database of a Prefect server of our own: which failures it is blamed for, and what becomes of it."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.prefect_database import Database
from tests.test_flows.conftest import SERVER_AT

ROOT = Path(__file__).parents[2]
_START = """
import logging, pathlib
from dass.errors import InfrastructureError
from flows.prefect_api import own_server
logging.basicConfig(format="%(message)s")
try:
    with own_server(private=pathlib.Path("private").absolute()):
        print("works")
except InfrastructureError as error:
    print(error)
"""
_WITHOUT = 'raise ImportError("no uvicorn here")\n'
_PORT_IS_TAKEN_ONCE = """
import pathlib, runpy, socket, sys
if __name__ == "__main__":
    first = pathlib.Path("first")
    if not first.exists():
        first.touch()
        other = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
    sys.path.remove(str(pathlib.Path(__file__).parent))
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
"""


def started(folder: Path, **environment: str) -> tuple[str, str]:
    """Start a server in `folder`, whose database lies in private/prefect. Returns what was printed, and logged."""
    inherited = {name: value for name, value in os.environ.items() if name not in SERVER_AT}
    paths = os.pathsep.join(filter(None, (environment.pop("modules", ""), str(ROOT))))
    done = subprocess.run(
        [sys.executable, "-c", _START],
        cwd=folder,
        env={**inherited, "PREFECT_HOME": str(folder / "private" / "prefect"), "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def database_of(folder: Path, *statements: str) -> Path:
    file = folder / "private" / "prefect" / "prefect.db"
    file.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)
    return file


def module(folder: Path, text: str) -> str:
    """A folder with a module that comes before uvicorn."""
    (folder / "modules").mkdir()
    (folder / "modules" / "uvicorn.py").write_text(text)
    return str(folder / "modules")


@pytest.mark.parametrize(
    "error",
    [
        "alembic.util.exc.CommandError: Can't locate revision identified by 'ffffffffffff'",
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) table flow_run already exists",
        "sqlalchemy.exc.DatabaseError: (sqlite3.DatabaseError) database disk image is malformed",
        "sqlite3.DatabaseError: file is not a database",
    ],
)
def test_what_a_database_holds_is_its_fault(error: str) -> None:
    assert Database.is_blamed(error)


@pytest.mark.parametrize(
    "error",
    [
        "ImportError: no uvicorn here",
        "MemoryError",
        "status -9",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 4200): address already in use",
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) disk I/O error",
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database or disk is full",
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked",
        "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) attempt to write a readonly database",
        "sqlalchemy.exc.NoSuchModuleError: Can't load plugin: sqlalchemy.dialects:sqlite.nope",
    ],
)
def test_what_lies_outside_a_database_is_not(error: str) -> None:
    assert not Database.is_blamed(error)


def test_a_database_outlives_a_server_that_failed_for_another_reason(tmp_path: Path) -> None:
    file = database_of(tmp_path, "CREATE TABLE kept (value)")
    before = file.read_bytes()
    said, logged = started(tmp_path, modules=module(tmp_path, _WITHOUT))
    assert said == f"Prefect's server did not start: no uvicorn here. Its database: {file}"
    assert logged == ""
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_port_that_is_taken_costs_another_start_and_no_database(tmp_path: Path) -> None:
    file = database_of(tmp_path, "CREATE TABLE kept (value)")
    said, logged = started(tmp_path, modules=module(tmp_path, _PORT_IS_TAKEN_ONCE))
    assert (said, logged) == ("works", "")
    assert (tmp_path / "first").exists()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE name = 'kept'").fetchone() == ("kept",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (
            (
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
                "INSERT INTO alembic_version VALUES ('ffffffffffff')",
            ),
            "Can't locate revision identified by 'ffffffffffff'",
        ),
        (("CREATE TABLE flow_run (x)",), "(sqlite3.OperationalError) table flow_run already exists"),
    ],
)
def test_a_database_of_another_version_is_made_anew_in_one_said_line(
    tmp_path: Path, statements: tuple[str, ...], told: str
) -> None:
    file = database_of(tmp_path, *statements)
    said, logged = started(tmp_path)
    assert said == "works"
    assert logged == (f"{file} could not be used ({told}): it is made anew. It held the list of past runs only.")
