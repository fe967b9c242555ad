"""MLflow's server, Prefect's and a worker: how each is started, and how one sees that it works and asks for a login."""

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from dass.errors import InfrastructureError
from flows.environment import NOTHING_LEAVES
from flows.stack.place import Place, Ports, read_environment
from flows.stack.postgres import address, password_file
from flows.stack.processes import Started
from flows.stack.processes import begin as begin_process

MLFLOW, PREFECT, WORKER = "mlflow", "prefect", "worker"
POOL = "dass"
"""The work pool of prefect.yaml."""
ADMIN, WORKS_AS = "admin", "runner"
"""MLflow's first account, and the one that the worker's runs log in as."""

_STARTUP_SECONDS = 180.0  # databases are made first, beside whatever else the machine does
# What a server gets of our environment: it has no use for anybody's tokens.
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"),
)
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is behind no proxy
_OURS = ("MLFLOW_", "PREFECT_", "PG", "DASS_SERVED_", "DASS_OWN_")


@dataclass(frozen=True)
class Service:
    """One of them.

    Attributes:
        begin: starts it, and returns when it works.
        works: whether it answers now.
        address: for people; None: it is asked by nobody.
    """

    begin: Callable[[], Started]
    works: Callable[[], bool]
    address: str | None


def services(place: Place, folder: Path, host: str, ports: Ports, mark: str) -> dict[str, Service]:
    """In the order in which they start; each needs those before it.

    Args:
        place: the stack's.
        folder: where the worker's runs begin.
        host: the address to listen at.
        ports: of each.
        mark: of the stack.
    """
    mlflow_uri, prefect_uri = (f"http://{_name(host)}:{port}" for port in (ports.mlflow, ports.prefect))
    worker_uri = f"http://127.0.0.1:{ports.worker}"

    def begin(
        name: str, command: list[str], environment: dict[str, str], works: Callable[[], bool], at: Path
    ) -> Started:
        return begin_process(
            [sys.executable, "-P", "-m", *command],
            at,
            place.log(name),
            environment,
            f"{mark}/{name}",
            works=works,
            what=_SPOKEN[name],
            seconds=_STARTUP_SECONDS,
        )

    def mlflow() -> Started:
        where = ["--host", host, "--port", str(ports.mlflow), "--workers", "1"]
        stores = ["--backend-store-uri", address("postgresql", "mlflow", "mlflow", ports.postgres)]
        stores += ["--artifacts-destination", place.artifacts.as_uri(), "--serve-artifacts"]
        command = ["mlflow", "server", "--app-name", "dass", *where, *stores]
        return begin(MLFLOW, command, _mlflow_environment(place, ports), lambda: mlflow_works(mlflow_uri), place.root)

    def prefect() -> Started:
        command = ["prefect", "server", "start", "--host", host, "--port", str(ports.prefect)]
        return begin(
            PREFECT, command, _prefect_environment(place, ports), lambda: prefect_works(prefect_uri), place.root
        )

    def worker() -> Started:
        command = ["flows", "stack", "worker", "--pool", POOL, "--name", "stack"]

        def works() -> bool:
            return worker_works(worker_uri) and _is_limited(place, prefect_uri)

        return begin(WORKER, command, _worker_environment(place, ports), works, folder)

    return {
        MLFLOW: Service(mlflow, lambda: mlflow_works(mlflow_uri), mlflow_uri),
        PREFECT: Service(prefect, lambda: prefect_works(prefect_uri), prefect_uri),
        WORKER: Service(worker, lambda: worker_works(worker_uri), None),
    }


_SPOKEN = {MLFLOW: "MLflow's server", PREFECT: "Prefect's server", WORKER: "The worker"}


def logins(place: Place, host: str, ports: Ports) -> tuple[dict[str, str], dict[str, str]]:
    """What leads to MLflow but for an account, and what leads to Prefect, as environment variables."""
    return (
        {"MLFLOW_TRACKING_URI": f"http://{_name(host)}:{ports.mlflow}"},
        {
            "PREFECT_API_URL": f"http://{_name(host)}:{ports.prefect}/api",
            "PREFECT_API_AUTH_STRING": f"dass:{place.secret('prefect-login')}",
        },
    )


def _name(host: str) -> str:
    """What this machine calls an address that is all of its own."""
    name = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    return f"[{name}]" if ":" in name else name


def _passed_on() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**kept, **NOTHING_LEAVES, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}


def _mlflow_environment(place: Place, ports: Ports) -> dict[str, str]:
    settings = place.private(
        "mlflow-auth.ini",
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"  # an account has what its role gives, and nothing else
        f"database_uri = {address('postgresql', 'mlflow', 'mlflow_auth', ports.postgres)}\n"
        f"admin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n",  # one process serves, so a changed password counts at once
    )
    return {
        **_passed_on(),
        "PGPASSFILE": str(password_file(place, "mlflow", ports.postgres)),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": place.secret("mlflow-admin"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": place.secret("mlflow-forms"),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _prefect_environment(place: Place, ports: Ports) -> dict[str, str]:
    return {
        **_passed_on(),
        "PGPASSFILE": str(password_file(place, "prefect", ports.postgres)),
        "PREFECT_HOME": str(place.root / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": address("postgresql+asyncpg", "prefect", "prefect", ports.postgres),
        "PREFECT_SERVER_API_AUTH_STRING": logins(place, "127.0.0.1", ports)[1]["PREFECT_API_AUTH_STRING"],
        "PREFECT_UI_API_URL": "/api",  # where the page was loaded from, whatever name that was
    }


def _worker_environment(place: Place, ports: Ports) -> dict[str, str]:
    """Its runs need what their user needs (the hub's token, a remote's), and log in as an account of their own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {
        **own,
        **NOTHING_LEAVES,
        **read_environment(place.account(WORKS_AS)),
        "PREFECT_HOME": str(place.root / "worker"),
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(ports.worker),
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }


def _is_limited(place: Place, uri: str) -> bool:
    """Let the pool have one run at work at a time, whichever it is: two would take each other's device.

    Returns:
        False: the worker has not made the pool yet.
    """
    login = base64.b64encode(f"dass:{place.secret('prefect-login')}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    body = json.dumps({"concurrency_limit": 1}).encode()
    request = urllib.request.Request(f"{uri}/api/work_pools/{POOL}", body, headers, method="PATCH")
    return _status(request) == HTTPStatus.NO_CONTENT


def mlflow_works(uri: str) -> bool:
    """Whether it answers. Raises InfrastructureError: it does, to those who do not log in."""
    if _status(f"{uri}/health") != HTTPStatus.OK:
        return False
    return _asks_for_login(f"{uri}/api/2.0/mlflow/registered-models/search?max_results=1", "MLflow", uri)


def prefect_works(uri: str) -> bool:
    """Whether it answers. Raises InfrastructureError: it does, to those who do not log in."""
    if _status(f"{uri}/api/health") != HTTPStatus.OK:
        return False
    return _asks_for_login(f"{uri}/api/admin/version", "Prefect", uri)


def worker_works(uri: str) -> bool:
    """Whether it asked Prefect for work lately."""
    return _status(f"{uri}/health") == HTTPStatus.OK


def _asks_for_login(page: str, what: str, uri: str) -> bool:
    status = _status(page)
    if status == HTTPStatus.OK:
        raise InfrastructureError(f"{what}'s server at {uri} asks for no login. It is not used.")
    return status == HTTPStatus.UNAUTHORIZED


def _status(url: str | urllib.request.Request) -> int | None:
    """The status of an answer; None: nobody answers."""
    try:
        with _DIRECTLY.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
