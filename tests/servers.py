"""Real servers for tests, on this machine's loopback only: Postgres, MLflow's in front of a database, and Prefect's."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dass.errors import InputError
from flows.stack.postgres import account, programs


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Postgres:
    """A Postgres that can be stopped or killed, and started again with its data.

    Attributes:
        uri: what SQLAlchemy connects to, without the password.
        environment: holds the password where Postgres' client library looks for it.
    """

    def __init__(self, folder: Path) -> None:
        self._found, self._who = installed()
        self._folder, self._port, password = folder, free_port(), secrets.token_hex(16)
        self.uri = f"postgresql://dass@127.0.0.1:{self._port}/postgres"
        self.environment = {"PGPASSWORD": password}
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if self._who:
                shutil.chown(path, self._who["user"], self._who["group"])
        make: list[str | Path] = [self._found / "initdb", "--pgdata", folder / "data", "--username", "dass"]
        make += ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run([*make, "--no-sync"], cwd=folder, check=True, stdout=subprocess.DEVNULL, **self._who)

    def start(self) -> None:
        """Start it, and return when it answers."""
        import psycopg2

        run: list[str | Path] = [self._found / "postgres", "-D", self._folder / "data", "-h", "127.0.0.1"]
        run += ["-p", str(self._port), "-k", self._folder, "-c", "fsync=off"]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(run, cwd=self._folder, stdout=log, stderr=log, **self._who)
        for _ in range(240):
            if self._process.poll() is not None:
                break
            try:
                self.connect().close()
            except psycopg2.OperationalError:
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"Postgres did not start:\n{(self._folder / 'log').read_text()}")

    def stop(self) -> None:
        """Connections are closed, and it ends."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def kill(self) -> None:
        """kill -9 of it and of what serves its connections."""
        leader = psutil.Process(self._process.pid)
        for process in (leader, *leader.children(recursive=True)):
            process.kill()
        self._process.wait(30)

    def connect(self) -> Any:
        """A DB-API connection."""
        import psycopg2

        return psycopg2.connect(self.uri, password=self.environment["PGPASSWORD"])


@contextmanager
def postgres() -> Generator[Postgres]:
    """A Postgres with an empty database. Skips the test where Postgres is not installed."""
    installed()
    folder = Path(tempfile.mkdtemp(prefix="dass-postgres-"))  # not in pytest's, which only its own user may enter
    try:
        made = Postgres(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def installed() -> tuple[Path, dict[str, Any]]:
    """The folder of initdb and postgres, and whom they run as."""
    try:
        return programs(), account()
    except InputError as error:
        pytest.skip(str(error))


_OF_CLIENTS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")


class Served:
    """A server's process that can be killed, and started again at the same address.

    Attributes:
        uri: its address.
    """

    def __init__(
        self, uri: str, health: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.uri = uri
        self._health, self._arguments, self._folder, self._environment = health, arguments, folder, environment

    def start(self) -> None:
        """Start it, and return when it answers."""
        log = self._folder / "server.log"
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_CLIENTS}
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                cwd=self._folder,
                env={**inherited, **self._environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        _wait_for(f"{self.uri}{self._health}", self._process, log)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 of it and of all that it has started."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, how)
        self._process.wait(30)


def mlflow_of(
    database: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    app: str | None = None,
    files: str | None = None,
) -> Served:
    """MLflow's server in front of a database, to be started.

    Args:
        database: what SQLAlchemy connects to.
        folder: where it works.
        environment: what it has besides ours.
        app: its --app-name.
        files: where it keeps artifacts; None: in `folder`.
    """
    port = free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", files or (folder / "server").as_uri(), "--serve-artifacts"]
    command += ["--app-name", app] if app else []
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    return Served(f"http://127.0.0.1:{port}", "/health", command, folder, {**quiet, **(environment or {})})


@contextmanager
def mlflow_server(
    database: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    app: str | None = None,
    files: str | None = None,
) -> Generator[str]:
    """The same, started; yields its address."""
    server = mlflow_of(database, folder, environment, app, files)
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


def prefect_of(folder: Path, login: str) -> Served:
    """Prefect's server with a database in `folder`, to be started."""
    port = free_port()
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    return Served(f"http://127.0.0.1:{port}", "/api/health", command, folder, own)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"a server did not start:\n{log.read_text()}")
