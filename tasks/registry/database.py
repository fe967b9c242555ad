"""MLflow's database, where MLflow speaks to one itself: is it one, is it MLflow's of this version, does it answer.

MLflow would ask a database that is gone ten times with growing pauses, wait for one that hangs without end, and make
its tables in anybody's file. So the first word to a database is ours, and every wait for it has a deadline.
"""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dass.errors import InfrastructureError, InputError
from tasks.workspace.locked import is_locked, told_lock
from tasks.workspace.patience import answer_seconds, one_answer, overdue
from tasks.workspace.redaction import redacted, shown_address

if TYPE_CHECKING:
    from sqlalchemy import Engine

_LOCKED_SECONDS = 30.0
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
_BUSY = "PRAGMA busy_timeout"
_PERMANENT = ("28", "3D")  # SQLSTATE: invalid login, no such database


def is_database(uri: str) -> bool:
    """Whether MLflow opens this address as a database."""
    return uri.partition(":")[0].partition("+")[0] in _SCHEMES


def locked_seconds() -> float:
    """How long a database that another process has locked is waited for."""
    return min(_LOCKED_SECONDS, answer_seconds())


@contextmanager
def bounded_database(uri: str) -> Iterator[None]:
    """While open, nothing waits for the database at `uri` without end: neither MLflow nor we."""
    from mlflow.store.db import utils
    from sqlalchemy import Engine, event

    def wait_for_locks(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if statement.startswith(_BUSY):  # MLflow's own 20 s
            statement = f"{_BUSY} = {int(locked_seconds() * 1000)}"
        return statement, parameters

    tries, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 1
    event.listen(Engine, "before_cursor_execute", wait_for_locks, retval=True)
    try:
        with _bounded_postgres() if uri.startswith("postgres") else nullcontext():
            yield
    finally:
        event.remove(Engine, "before_cursor_execute", wait_for_locks)
        utils.MAX_RETRY_COUNT = tries


def check_database(uri: str) -> None:
    """Speak to a database before MLflow does.

    Raises:
        InputError: it is none, it is another program's or another MLflow's, or it refuses the login.
        InfrastructureError: it does not answer, or is locked.
    """
    from sqlalchemy import create_engine, pool
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    options = {"connect_args": {"timeout": locked_seconds()}} if uri.startswith("sqlite") else {}
    shown = shown_address(uri)
    try:
        engine = create_engine(uri, poolclass=pool.NullPool, **options)
        _check_schema(engine, uri)
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown} cannot be opened: {spoken(error)}.") from None
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None) or ""
        if "file is not a database" in str(error.orig):
            raise InputError(
                f"{shown} is no SQLite database: expected MLflow's. Move the file away, or name another."
            ) from None
        if is_locked(error):
            told = told_lock(sqlite_file(uri), locked_seconds())
            raise InfrastructureError(f"{shown}: {told}.") from None
        if state.startswith(_PERMANENT) or "authentication failed" in str(error.orig):
            raise InputError(f"{shown} refuses: {spoken(error)}. Correct the address or the login.") from None
        raise InfrastructureError(f"{shown} does not answer: {spoken(error)}.") from None
    except SQLAlchemyError as error:
        raise InfrastructureError(f"{shown}: {spoken(error)}.") from None


def spoken(error: BaseException) -> str:
    """What an error says, on one line of bearable length: no SQL, no parameters, no secrets."""
    original = getattr(error, "orig", None) or error
    text = " ".join(redacted(str(original)).split()).partition("[SQL:")[0].partition("(Background on")[0]
    text = text.strip().rstrip(".") or type(original).__name__
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


def sqlite_file(uri: str) -> Path | None:
    """The file that an SQLite address names; None: it is in memory, or the address is another database's."""
    if not uri.startswith("sqlite"):
        return None
    path = unquote(uri.partition("?")[0].partition(":///")[2].removeprefix("file:"))
    return Path(path) if path and path != ":memory:" else None


def _check_schema(engine: "Engine", uri: str) -> None:
    from sqlalchemy import inspect, text

    shown = shown_address(uri)
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        if not tables:
            return  # MLflow makes its own
        found = (
            [str(row[0]) for row in connection.execute(text("SELECT version_num FROM alembic_version"))]
            if "alembic_version" in tables
            else []
        )
    if not found or "experiments" not in tables:
        raise InputError(f"{shown} holds tables that are not MLflow's ({', '.join(sorted(tables)[:3])}). Name another.")
    newest, known = _revisions()
    if found == [newest]:
        return
    from mlflow.version import VERSION

    if found[0] in known:
        raise InputError(
            f"{shown} was made by an older MLflow (schema {found[0]}; this one, {VERSION}, wants {newest}). "
            f"Keep a copy of it, then run: mlflow db upgrade {shown}"
        )
    raise InputError(
        f"{shown} was made by a newer MLflow (schema {found[0]}, which this one, {VERSION}, does not know). "
        "Use that MLflow, or name another database."
    )


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The schema that this MLflow wants, and those it knows how to leave behind."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
    return utils._get_latest_schema_revision(), frozenset(script.revision for script in scripts.walk_revisions())


@contextmanager
def _bounded_postgres() -> Iterator[None]:
    """psycopg2 waits in C, where no timeout of ours reaches, unless it is given a function that waits instead."""
    from psycopg2 import extensions

    before = extensions.get_wait_callback()
    extensions.set_wait_callback(_wait)
    try:
        yield
    finally:
        extensions.set_wait_callback(before)


def _wait(connection: Any) -> None:
    from psycopg2 import OperationalError, extensions

    with one_answer() as seconds:
        until = time.monotonic() + seconds
        while (state := connection.poll()) != extensions.POLL_OK:
            left = until - time.monotonic()
            line = [connection.fileno()]
            reads, writes = (line, []) if state == extensions.POLL_READ else ([], line)
            if left <= 0 or not any(select.select(reads, writes, [], left)):
                raise OperationalError(str(overdue(seconds)))
