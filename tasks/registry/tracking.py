"""Where MLflow keeps runs and versions, and how it is spoken to: quietly, within bounds, and without telling secrets.

The embedded default is SQLite and a folder inside the workspace; MLFLOW_TRACKING_URI names another place, and
MLFLOW_REGISTRY_URI another one for versions. MLflow takes seconds to import, so it is imported when it is first needed.
"""

import logging
import math
import os
import re
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dass.errors import InfrastructureError, InputError
from tasks.registry import embedded
from tasks.registry.place import artifacts, database, embedded_uri, follow_workspace, make_database
from tasks.workspace.folder import Workspace
from tasks.workspace.locked import is_locked, told_lock
from tasks.workspace.patience import VARIABLE, answer_seconds, patience
from tasks.workspace.redaction import shown_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

_URI = "MLFLOW_TRACKING_URI"
_REGISTRY = "MLFLOW_REGISTRY_URI"
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the result
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
}
# Where a new store places what nobody placed; MLflow's own default is the folder that it happens to be started in.
_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
_QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_QUICK_SECONDS = 15.0

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_REFUSALS = (  # MLflow answered, and will answer the same again
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "NOT_IMPLEMENTED",
    "INVALID_STATE",
)


class TrackingError(InfrastructureError):
    """MLflow could not do what was asked. The message is one line and holds no credentials."""


class TrackingRefusal(TrackingError, InputError):
    """MLflow answered that it will not do what was asked: a name, a login, a right is what it objects to."""


def tracking_uri(workspace: Workspace) -> str:
    """Where MLflow keeps this workspace's runs: MLFLOW_TRACKING_URI, or mlflow.db in the workspace."""
    return os.environ.get(_URI) or embedded_uri(workspace)


def store_of(client: "MlflowClient") -> str:
    """Which store a client speaks to, as it may be shown: the same for every workspace that names it."""
    uri = str(client.tracking_uri)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return shown_address(uri).rstrip("/")


def is_embedded(workspace: Workspace) -> bool:
    """Whether that is the workspace's own mlflow.db."""
    uri = tracking_uri(workspace)
    path = Path(uri.removeprefix("sqlite:///"))  # a relative one is meant from here
    return uri == embedded_uri(workspace) or (uri.startswith("sqlite:///") and path.resolve() == database(workspace))


def artifact_location(workspace: Workspace) -> str | None:
    """Where a new experiment keeps its files; None where a server decides."""
    is_server = re.match(r"https?:|databricks", tracking_uri(workspace))
    return None if is_server else artifacts(workspace).as_uri()


@contextmanager
def tracking(workspace: Workspace) -> Generator["MlflowClient"]:
    """Speak to the workspace's MLflow, by the client alone: the caller's active run, and what he told MLflow itself,
    mean nothing here. The environment is put back afterwards. No answer is waited for longer than DASS_TIMEOUT says.

    Raises:
        TrackingRefusal: MLflow refused.
        TrackingError: it could not be reached, or failed.
        InputError: its database is none or another MLflow's, or the workspace was moved or copied and its mlflow.db
            cannot be made to follow.
    """
    uri = tracking_uri(workspace)
    registry = os.environ.get(_REGISTRY) or uri
    seconds = str(math.ceil(answer_seconds()))
    waits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": seconds, "PGCONNECT_TIMEOUT": str(max(2, int(seconds)))}
    ours = {_ROOT: artifacts(workspace).as_uri()} if is_embedded(workspace) else {}
    with patience(), _environment({**_DEFAULTS, **waits, **ours, _URI: uri}), ExitStack() as bounds:
        from mlflow import MlflowClient  # after its environment, and before its loggers are quietened: it sets them up

        from tasks.registry import bounded_http
        from tasks.registry.database import bounded_database, is_database

        bounded_http.install()
        bounds.enter_context(_told_as_ours(uri))
        bounds.enter_context(_quiet())
        for address in filter(is_database, dict.fromkeys((uri, registry))):
            bounds.enter_context(bounded_database(address))
            _meet(address)
        if ours:
            follow_workspace(workspace)
            make_database(workspace)
        yield MlflowClient(uri, registry)


@contextmanager
def reading(workspace: Workspace) -> Generator["MlflowClient"]:
    """As `tracking`, for whoever mostly reads: an embedded store's database is asked itself, and MLflow is loaded when
    that does not answer, or when something is written."""
    if not _is_plain(workspace):
        with tracking(workspace) as client:
            yield client
        return
    follow_workspace(workspace)
    with ExitStack() as opened:
        yield embedded.EmbeddedClient(
            database(workspace), tracking_uri(workspace), lambda: opened.enter_context(tracking(workspace))
        )


def _is_plain(workspace: Workspace) -> bool:
    """Whether runs and versions are both in the workspace's own mlflow.db, and that can be asked without MLflow."""
    uri = tracking_uri(workspace)
    is_ours = is_embedded(workspace) and (os.environ.get(_REGISTRY) or uri) == uri
    return is_ours and embedded.is_plain(database(workspace))


def code_of(error: Exception) -> str | None:
    """MLflow's word for what is wrong, such as RESOURCE_DOES_NOT_EXIST; None: the error is not MLflow's."""
    code: str | None = getattr(error, "error_code", None)
    return code


def is_denied(error: Exception) -> bool:
    """Whether MLflow's server answered that this account may not do it."""
    return code_of(error) == "PERMISSION_DENIED"


def is_outage(error: BaseException) -> bool:
    """Whether an error says only that something did not answer, and nothing about what was asked."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, (InfrastructureError, RequestException, SQLAlchemyError)) and not isinstance(
        error, InputError
    )


def check_reachable(workspace: Workspace) -> None:
    """Ask the tracking store, and the registry where that is another one, for something small, before hours of work.

    A database of the embedded default that is not there yet is made when it is first needed, and is not asked.

    Raises:
        InputError: an address cannot be used, or MLflow refuses.
        InfrastructureError: it cannot be reached.
    """
    named = {name: os.environ[name] for name in (_URI, _REGISTRY) if os.environ.get(name)}
    if _is_plain(workspace) or (not named and not database(workspace).exists()):
        return
    try:
        for uri in named.values():
            _knock(uri)
        quick = {VARIABLE: str(min(_QUICK_SECONDS, answer_seconds()))}
        with _environment(_QUICK), _environment(quick, override=True), tracking(workspace) as client:
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:  # whatever a store's driver raises, it means that registering would fail at the end
        if not named:
            raise
        from tasks.registry.database import spoken

        told = " and ".join(f"{name} is {shown_address(uri)}" for name, uri in named.items())
        is_wrong = isinstance(error, (InputError, ValueError)) or not isinstance(error, (InfrastructureError, OSError))
        raise (InputError if is_wrong else TrackingError)(
            f"{told} and cannot be used ({spoken(error)}). Start that server, correct the address or the login, or "
            "unset it to use the workspace's own mlflow.db."
        ) from None


def _knock(uri: str) -> None:
    """A database that is not there is told at once; MLflow would ask it again for minutes."""
    parts = urlsplit(shown_address(uri))
    port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port and not parts.scheme.startswith("http"):  # http may go through a proxy
        socket.create_connection((parts.hostname, port), timeout=min(10, answer_seconds())).close()


_met: set[tuple[str, int]] = set()


def _meet(uri: str) -> None:
    """Look at a database once before MLflow opens it; one that is not there yet MLflow makes."""
    from tasks.registry.database import check_database, sqlite_file

    inode = 0
    if uri.startswith("sqlite"):
        file = sqlite_file(uri)
        if file is None or not file.exists():
            return
        inode = file.stat().st_ino
    if (uri, inode) not in _met:
        check_database(uri)
        _met.add((uri, inode))


@contextmanager
def _told_as_ours(uri: str) -> Iterator[None]:
    """What MLflow and the libraries below it raise becomes a TrackingError."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    from tasks.registry.database import locked_seconds, spoken, sqlite_file

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        kind = TrackingError if is_outage(error) else TrackingRefusal
        inner = _innermost(error)
        told = told_lock(sqlite_file(uri), locked_seconds()) if is_locked(inner) else spoken(inner)
        raise kind(f"MLflow at {shown_address(uri)}: {told}") from None


def _innermost(error: Exception) -> BaseException:
    """MLflow puts the whole statement of a failed query into its message; the driver's error says what happened."""
    cause = error.__cause__
    return cause if getattr(cause, "orig", None) is not None and cause is not None else error


@contextmanager
def _environment(values: dict[str, str], override: bool = False) -> Iterator[None]:
    """Environment variables that are not set (or all, to override) get these values for a while."""
    before = dict(os.environ)
    for name, value in values.items():
        if override or name not in os.environ:
            os.environ[name] = value
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow is silent: its news would go between our lines, and its errors hold whole statements. We tell them."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
