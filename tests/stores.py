"""A tracking store for tests that need one that is really there: SQLite, or a server on Postgres."""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tests.servers import mlflow_server, postgres


@dataclass(frozen=True)
class Store:
    """MLflow, and the database behind it.

    Attributes:
        kind: "sqlite" or "postgres".
        uri: for MLFLOW_TRACKING_URI.
        workspace: an empty folder's, for `tracking(workspace)`.
        connect: gives a DB-API connection to the database itself.
    """

    kind: str
    uri: str
    workspace: Workspace
    connect: Callable[[], Any]

    def execute(self, sql: str, *values: Any) -> int:
        """Run a statement in the database, behind MLflow's back; "?" stands for a value. Returns the rows changed."""
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql if self.kind == "sqlite" else sql.replace("?", "%s"), values)
            connection.commit()
            return int(cursor.rowcount)


@contextmanager
def sqlite_store(folder: Path) -> Generator[Store]:
    """The embedded default, migrated."""
    workspace = Workspace(folder)
    database = folder / "mlflow.db"
    store = Store("sqlite", f"sqlite:///{database}", workspace, lambda: sqlite3.connect(database, timeout=20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store.uri)
        with tracking(workspace) as client:
            client.search_experiments(max_results=1)
    yield store


@contextmanager
def postgres_store(folder: Path) -> Generator[Store]:
    """MLflow's server on Postgres. Skips where Postgres is not installed."""
    with postgres() as database, mlflow_server(database.uri, folder, database.environment) as uri:
        yield Store("postgres", uri, Workspace(folder), database.connect)
