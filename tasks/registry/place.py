"""Where the embedded store lies: mlflow.db and mlartifacts inside the workspace, wherever the workspace is now.

MLflow writes absolute locations into its database. A workspace that was copied or renamed would go on reading and
writing where it was made, so what the database places below the old folder is placed below this one before MLflow
looks.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dass.errors import InfrastructureError, InputError
from dass.files import complete_file
from tasks.registry.database import locked_seconds
from tasks.workspace.databases import sqlite_url
from tasks.workspace.flocked import flocked
from tasks.workspace.folder import Workspace
from tasks.workspace.locked import is_locked, told_lock

ARTIFACTS = "mlartifacts"
_DRIVER = "sqlite"
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),  # among them where a trace's files lie
)
_LOG = logging.getLogger("dass")


def database(workspace: Workspace) -> Path:
    """The embedded store's database; MLflow makes it when it is first asked."""
    return workspace.registry / "mlflow.db"


def embedded_uri(workspace: Workspace) -> str:
    """The embedded store as MLflow names it."""
    return sqlite_url(_DRIVER, database(workspace))


def artifacts(workspace: Workspace) -> Path:
    """The folder of the embedded store's files."""
    return workspace.registry / ARTIFACTS


def local_path(location: str) -> Path | None:
    """The folder that an artifact location stands for; None when it is on a server."""
    if location.startswith("/"):
        return Path(location)
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def make_database(workspace: Workspace) -> None:
    """Make the embedded store's database, unless it is there. Call where MLflow's environment is set up.

    MLflow makes dozens of tables in one place after another, and cannot go on where it was killed. So that is done
    beside, by one process at a time, and the file renamed.
    """
    path = database(workspace)
    if _is_made(path):
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    private = Workspace(workspace.registry).private
    private.mkdir(exist_ok=True)
    with flocked(private / "mlflow.lock", f"{path}, which MLflow makes now,"):
        if not _is_made(path):
            with complete_file(path) as temporary:
                store = SqlAlchemyStore(sqlite_url(_DRIVER, temporary), artifacts(workspace).as_uri())
                store.engine.dispose()


def _is_made(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def follow_workspace(workspace: Workspace) -> None:
    """Let the embedded store's database name the files inside this workspace, and say so when it did not.

    Only what lay below the folder where the store was made is changed, in one transaction.

    Raises:
        InputError: the database cannot be changed. The message names both folders.
        InfrastructureError: another process has it locked.
    """
    path = database(workspace)
    if not path.is_file():
        if any(artifacts(workspace).glob("models/*")):
            _LOG.warning("%s is gone, though %s holds versions: the history begins anew", path, artifacts(workspace))
        return
    seconds = locked_seconds()
    with closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as connection, _named(path, seconds):
        for before in _earlier_roots(connection, workspace):
            try:
                changed = _replace(connection, before, workspace.registry)
            except sqlite3.OperationalError as error:
                if is_locked(error):
                    raise
                raise InputError(
                    f"{workspace.registry} was copied or moved from {before}, and its mlflow.db still names the "
                    f"files there. That cannot be changed ({error}): make {path} writable, or use {before}."
                ) from error
            _LOG.warning(
                "%s was copied or moved from %s: %d locations in mlflow.db now name the files here",
                *(workspace.registry, before, changed),
            )


@contextmanager
def _named(path: Path, seconds: float) -> Iterator[None]:
    """A lock that was waited for in vain is told with whose it is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        raise InfrastructureError(f"{path}: {told_lock(path, seconds)}.") from None


def _earlier_roots(connection: sqlite3.Connection, workspace: Workspace) -> list[Path]:
    """The folders of workspaces that the database places its files in, other than this one."""
    try:
        found = connection.execute("select experiment_id, artifact_location from experiments").fetchall()
    except sqlite3.DatabaseError as error:
        if "no such table" in str(error):  # MLflow has not filled it yet
            return []
        if is_locked(error):
            raise
        raise InputError(f"{database(workspace)} cannot be read: {error}.") from error
    earlier = dict.fromkeys(
        root
        for number, location in found
        for root in [_root_of(location, number)]
        if root is not None and root != workspace.registry and (number == 0 or _holds(connection, workspace, number))
    )
    return list(earlier)


def _root_of(location: str | None, experiment: int) -> Path | None:
    """The workspace whose embedded store an experiment was made in, going by where its files are.

    Experiment 0 comes with the database itself, and the root it was made with is ours: mlartifacts/0.
    """
    path = local_path(location or "")
    if path is not None and experiment == 0:
        path = path.parent
    return path.parent if path is not None and path.name == ARTIFACTS else None


def _holds(connection: sqlite3.Connection, workspace: Workspace, experiment: int) -> bool:
    """Whether files of the experiment are in here. Else somebody may have placed them elsewhere on purpose."""
    runs = connection.execute("select run_uuid from runs where experiment_id = ?", (experiment,))
    return any((artifacts(workspace) / run).is_dir() for (run,) in runs)


def _replace(connection: sqlite3.Connection, before: Path, now: Path) -> int:
    """Change every location below `before`, written as a URI or as a path. Returns how many."""
    changed = 0
    connection.execute("begin immediate")
    try:
        for table, column in _present(connection):
            for old, new in ((before.as_uri(), now.as_uri()), (str(before), str(now))):
                changed += connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                ).rowcount
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise
    return changed


def _present(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table, column in _LOCATIONS:
        if any(row[1] == column for row in connection.execute(f"pragma table_info({table})").fetchall()):
            yield table, column
