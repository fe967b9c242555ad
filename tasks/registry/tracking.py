"""Where MLflow keeps runs and versions, and how it is spoken to: quietly, within bounds, and without telling secrets.

The embedded default is SQLite and a folder inside the workspace; MLFLOW_TRACKING_URI names another place.
MLflow takes seconds to import, so it is imported when it is first needed.
"""

import logging
import os
import re
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dass.errors import InputError
from tasks.registry.place import artifacts, database, embedded_uri, follow_workspace, make_database
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_URI = "MLFLOW_TRACKING_URI"
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the result
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # about 30 s in all; MLflow's own 7 take minutes
}
# Where a new store places what nobody placed; MLflow's own default is the folder that it happens to be started in.
_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

_NAMES_A_HOST = re.compile(r"[\w+.-]+://[^/]")
_CREDENTIALS = re.compile(r"://(.*)@")  # up to the last @: a password may hold one, and a slash


class TrackingError(RuntimeError):
    """MLflow could not do what was asked. The message is one line and holds no credentials."""


def tracking_uri(workspace: Workspace) -> str:
    """Where MLflow keeps this workspace's runs: MLFLOW_TRACKING_URI, or mlflow.db in the workspace."""
    return os.environ.get(_URI) or embedded_uri(workspace)


def is_embedded(workspace: Workspace) -> bool:
    """Whether that is the workspace's own mlflow.db."""
    uri = tracking_uri(workspace)
    path = Path(uri.removeprefix("sqlite:///"))  # a relative one is meant from here
    return uri == embedded_uri(workspace) or (uri.startswith("sqlite:///") and path.resolve() == database(workspace))


def artifact_location(workspace: Workspace) -> str | None:
    """Where a new experiment keeps its files; None where a server decides."""
    is_server = re.match(r"https?:|databricks", tracking_uri(workspace))
    return None if is_server else artifacts(workspace).as_uri()


def without_credentials(uri: str) -> str:
    """The URI without user, password and query: what may be shown, logged and stored."""
    if not _NAMES_A_HOST.match(uri):
        return uri  # a path may hold an @
    return _CREDENTIALS.sub("://", uri).partition("?")[0]


@contextmanager
def tracking(workspace: Workspace) -> Generator["MlflowClient"]:
    """Speak to the workspace's MLflow, by client or by `mlflow.` calls. The environment is put back afterwards.

    Raises:
        TrackingError: MLflow refused or could not be reached.
        InputError: the workspace was moved or copied, and its mlflow.db cannot be made to follow.
    """
    uri = tracking_uri(workspace)
    ours = {}
    if is_embedded(workspace):
        follow_workspace(workspace)
        ours = {_ROOT: artifacts(workspace).as_uri()}
    with _environment({**_DEFAULTS, **ours, _URI: uri}):
        from mlflow import MlflowClient  # after its environment, and before its loggers are quietened: it sets them up
        from mlflow.exceptions import MlflowException

        try:
            with _quiet():
                if ours:
                    make_database(workspace)
                yield MlflowClient()
        except MlflowException as error:
            raise TrackingError(f"MLflow at {without_credentials(uri)}: {_one_line(error, uri)}") from None


def check_reachable(workspace: Workspace) -> None:
    """Ask a tracking store that MLFLOW_TRACKING_URI names for something small, before hours of work.

    The embedded default is made when it is first needed and is not asked.

    Raises:
        InputError: it cannot be reached, or it refuses.
    """
    if not os.environ.get(_URI):
        return
    uri = tracking_uri(workspace)
    try:
        _knock(uri)
        with _environment(_QUICK), tracking(workspace) as client:
            client.search_experiments(max_results=1)
    except Exception as error:  # whatever a store's driver raises, it means that registering would fail at the end
        raise InputError(
            f"{_URI} is {without_credentials(uri)} and cannot be used ({_one_line(error, uri)}). "
            "Start that server, correct the address or the login, or unset it to use the workspace's own mlflow.db."
        ) from None


def _knock(uri: str) -> None:
    """A database that is not there is told at once; MLflow would ask it again for minutes."""
    parts = urlsplit(without_credentials(uri))
    port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port and not parts.scheme.startswith("http"):  # http may go through a proxy
        socket.create_connection((parts.hostname, port), timeout=10).close()


def _one_line(error: Exception, uri: str) -> str:
    """What the error says, on one line of bearable length, without credentials."""
    text = " ".join(str(error).split()).replace(uri, without_credentials(uri))
    login = _CREDENTIALS.search(uri)
    secrets = [os.environ.get("MLFLOW_TRACKING_PASSWORD"), os.environ.get("MLFLOW_TRACKING_TOKEN")]
    secrets += [login[1], login[1].partition(":")[2]] if login else []
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that are not set get these values for a while."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Only MLflow's errors are shown: its news of migrations and model cards would go between our lines."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
