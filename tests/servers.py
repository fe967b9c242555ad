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

    programs, account = _postgres_programs(), _account()
    folder = Path(tempfile.mkdtemp(prefix="dass-postgres-"))  # not in pytest's, which only its own user may enter
    try:
        password, port = secrets.token_hex(16), free_port()
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if account:
                shutil.chown(path, account["user"], account["group"])
        make: list[str | Path] = [programs / "initdb", "--pgdata", folder / "data", "--username", "dass", "--no-sync"]
        make += ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(make, cwd=folder, check=True, stdout=subprocess.DEVNULL, **account)
        run: list[str | Path] = [
            programs / "postgres",
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
            process = subprocess.Popen(run, cwd=folder, stdout=log, stderr=log, **account)
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


def _postgres_programs() -> Path:
    """The folder of initdb and postgres."""
    on_path = shutil.which("initdb")
    known = [Path(on_path).resolve().parent] if on_path else []
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: int(found.parent.name), reverse=True)
    for folder in known:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip("Postgres is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")


def _account() -> dict[str, Any]:
    """Postgres refuses to run as root: then it runs as the user that its package makes."""
    if os.geteuid() != 0:
        return {}
    import pwd

    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("Postgres does not run as root, and there is no user postgres")
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


@contextmanager
def mlflow_server(database: str, folder: Path, environment: dict[str, str] | None = None) -> Generator[str]:
    """MLflow's server in front of a database, keeping files in `folder`; yields its address."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", (folder / "server").as_uri(), "--serve-artifacts"]
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
