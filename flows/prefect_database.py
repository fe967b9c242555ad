"""The database behind a Prefect server of our own: made anew when it is damaged and disposable, else named."""

import asyncio
import fcntl
import logging
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dass.errors import InputError
from flows.prefect_settings import origin
from tasks.sources.waiting import in_time
from tasks.workspace.patience import Overdue

if TYPE_CHECKING:
    from prefect.settings import Settings

_CONNECT_SECONDS = 6.0
_WAIT_SECONDS = 120.0  # for another own server that is starting
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_ITS_ERRORS = re.compile(r"\b(?:sqlite3|alembic|asyncpg)\.")
_SURROUNDINGS = (  # SQLite's words for what lies outside the file
    *("unable to open database file", "database or disk is full", "disk I/O error", "attempt to write a readonly"),
    *("is locked", "out of memory", "interrupted"),
)
_READ_WHOLE = 64 << 20  # bytes; of a larger file only the first pages are looked at
_CHOOSING = ("connection_url", "driver", "name")

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class Database:
    """Where a server of our own keeps flow runs.

    Attributes:
        url: SQLAlchemy's.
        chosen: who chose it, in words; None: it lies in Prefect's home.
        home: Prefect's home.
        disposable: whether it may be made anew.
    """

    url: str
    chosen: str | None
    home: Path
    disposable: bool

    @classmethod
    def of(cls, settings: "Settings", private: Path | None) -> "Database":
        """The one that Prefect's settings name. Inside the folder `private` it is ours to throw away."""
        url = settings.server.database.connection_url
        assert url is not None
        home = settings.home.absolute()
        chosen = next(filter(None, (origin("ServerDatabaseSettings", field) for field in _CHOOSING)), None)
        database = cls(url.get_secret_value(), chosen, home, disposable=False)
        file = database.file
        ours = file is not None and private is not None and file.is_relative_to(private.absolute())
        return replace(database, disposable=ours)

    @property
    def file(self) -> Path | None:
        """The file of SQLite; None for another database, and for one in memory."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.url)
        except ArgumentError:
            return None
        named = url.database if url.get_backend_name() == "sqlite" else None
        if not named or ":memory:" in named:
            return None
        return Path(unquote(named.removeprefix("file:")) if named.startswith("file:") else named).absolute()

    @property
    def name(self) -> str:
        """What may be shown of it."""
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.url)
        except ArgumentError:
            return "an address that is none"
        return str(self.file) if url.get_backend_name() == "sqlite" else f"{url.host}:{url.port}/{url.database}"

    def check(self) -> None:
        """Find out before the server starts, which would try for minutes.

        Raises:
            InputError: it is not ours, and cannot be used.
        """
        if self.chosen is not None and not self.disposable:
            try:
                in_time(lambda: asyncio.run(_ask(self.url)), _CONNECT_SECONDS)
            except Overdue:
                raise self.unusable(f"no answer within {_CONNECT_SECONDS:g} s") from None
            except Exception as error:
                raise self.unusable(_one_line(error)) from None
        reason = self._damage()
        if reason is not None:
            self.make_anew(reason)

    @staticmethod
    def is_blamed(error: str) -> bool:
        """Whether a server that ended with this error ended because of what its database holds.

        A full disk, a port that is taken or a library that is missing is nothing that a new database mends.
        """
        return bool(_ITS_ERRORS.search(error)) and not any(words in error for words in _SURROUNDINGS)

    def make_anew(self, reason: str) -> None:
        """Remove a damaged database that holds nothing but the history of flow runs; the server makes another.

        Raises:
            InputError: it is not ours, or somebody works with it.
        """
        file = self.file
        if not self.disposable or file is None:
            raise self.unusable(reason)
        with _lock(self.home / "in-use.lock", fcntl.LOCK_EX, 0.0) as alone:
            if not alone:
                raise self.unusable(f"{reason}; another command works with it")
            for path in (file, *(file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm", "-journal"))):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        logger.warning("%s could not be used (%s): it is made anew. It held the list of past runs only.", file, reason)

    def unusable(self, reason: str) -> InputError:
        """What to raise about it."""
        where = self.chosen or origin("Settings", "home") or "Prefect's home"
        way_out = "Move it away to start with an empty one" if self.file else "Start it or correct the address"
        return InputError(
            f"Prefect's database {self.name} ({where}) cannot be used: {reason}. {way_out}, or choose another there."
        )

    @contextmanager
    def starting(self) -> Iterator[None]:
        """One server of ours at a time starts: two that make the same database's tables get in each other's way.

        Raises:
            InputError: another one takes too long.
        """
        with _lock(self.home / "starting.lock", fcntl.LOCK_EX, _WAIT_SECONDS) as alone:
            if not alone:
                raise self.unusable(f"another command has been starting its server for {_WAIT_SECONDS:.0f} s")
            yield

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from making it anew."""
        with _lock(self.home / "in-use.lock", fcntl.LOCK_SH, 1.0):
            yield

    def _damage(self) -> str | None:
        file = self.file
        if file is None or not file.exists():
            return None
        if not file.is_file():
            return "it is not a file"
        quick = "PRAGMA quick_check(1)" if file.stat().st_size <= _READ_WHOLE else "PRAGMA schema_version"
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1.0)) as connection:
                (answer,) = connection.execute(quick).fetchone()
        except sqlite3.DatabaseError as error:
            return str(error) if getattr(error, "sqlite_errorname", "").startswith(_DAMAGED) else None
        return None if isinstance(answer, int) or answer == "ok" else "its pages are damaged"


async def _ask(url: str) -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    options: dict[str, Any] = {"connect_args": {"timeout": _CONNECT_SECONDS}} if "asyncpg" in url else {}
    engine = create_async_engine(url, **options)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    finally:
        await engine.dispose()


def _one_line(error: Exception) -> str:
    """The first line only: SQLAlchemy adds advice, and drivers may add the address with its password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _lock(path: Path, kind: int, seconds: float) -> Iterator[bool]:
    """Hold a lock file; yields whether it could be had within `seconds`."""
    deadline = time.monotonic() + seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                yield True
                return
