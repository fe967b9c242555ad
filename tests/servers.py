"""Real servers for tests, on this machine's loopback only: Postgres, and MLflow's server in front of a database."""

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
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from flows.stack.postgres import account, programs


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Postgres:
    """A running Postgres.

    Attributes:
        uri: what SQLAlchemy connects to, without the password.
        environment: holds the password where Postgres' client library looks for it.
    """

    def __init__(self, port: int, password: str) -> None:
        self.uri = f"postgresql://dass@127.0.0.1:{port}/postgres"
        self.environment = {"PGPASSWORD": password}

    def connect(self) -> Any:
        """A DB-API connection."""
        import psycopg2

        return psycopg2.connect(self.uri, password=self.environment["PGPASSWORD"])


@contextmanager
def postgres() -> Generator[Postgres]:
    """A Postgres with an empty database. Skips the test where Postgres is not installed."""
    import psycopg2

    found, who = installed()
    folder = Path(tempfile.mkdtemp(prefix="dass-postgres-"))  # not in pytest's, which only its own user may enter
    try:
        password, port = secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if who:
                shutil.chown(path, who["user"], who["group"])
        make: list[str | Path] = [found / "initdb", "--pgdata", folder / "data", "--username", "dass", "--no-sync"]
        make += ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL, **who)
        run: list[str | Path] = [
            found / "postgres",
            "-D",
            folder / "data",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            folder,
        ]
        run += ["-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(run, cwd=folder, stdout=log, stderr=log, **who)
        try:
            made = Postgres(port, password)
            for _ in range(240):
                if process.poll() is not None:
                    break
                try:
                    made.connect().close()
                except psycopg2.OperationalError:
                    time.sleep(0.1)
                else:
                    yield made
                    return
            pytest.fail(f"Postgres did not start:\n{(folder / 'log').read_text()}")
        finally:
            process.send_signal(signal.SIGINT)  # connections are closed, and it ends
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def installed() -> tuple[Path, dict[str, Any]]:
    """The folder of initdb and postgres, and whom they run as."""
    try:
        return programs(), account()
    except InputError as error:
        pytest.skip(str(error))


@contextmanager
def mlflow_server(
    database: str,
    folder: Path,
    environment: dict[str, str] | None = None,
    app: str | None = None,
    files: str | None = None,
) -> Generator[str]:
    """MLflow's server in front of a database; yields its address.

    Args:
        database: what SQLAlchemy connects to.
        folder: where it works.
        environment: what it has besides ours.
        app: its --app-name.
        files: where it keeps artifacts; None: in `folder`.
    """
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", files or (folder / "server").as_uri(), "--serve-artifacts"]
    command += ["--app-name", app] if app else []
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **quiet, **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"{uri}/health", process, folder / "server.log")
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the MLflow server did not start:\n{log.read_text()}")
