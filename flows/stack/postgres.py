"""Postgres of Debian's package, on loopback: a cluster, a role and databases for each server that stores there."""

import os
import pwd
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from dass.errors import InfrastructureError, InputError
from flows.stack.place import Place
from flows.stack.processes import Started, begin
from tasks.workspace.redaction import redacted

HOST = "127.0.0.1"
DATABASES = {"mlflow": ("mlflow", "mlflow_auth"), "prefect": ("prefect",)}
"""Role -> the databases that are its own."""
STOP = signal.SIGINT  # connections are closed, and it ends
_OWNER = "dass"
_STARTUP_SECONDS = 60.0


def programs() -> Path:
    """The folder of initdb and postgres, the newest version's.

    Raises:
        InputError: Postgres is not installed; says how it is.
    """
    on_path = shutil.which("initdb")
    known = [Path(on_path).resolve().parent] if on_path else []
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: found.parent.name.zfill(4))[::-1]
    for folder in known:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise InputError(
        "Postgres is not installed: no initdb on PATH or in /usr/lib/postgresql. Run: apt install postgresql"
    )


def account() -> dict[str, Any]:
    """Whom Postgres runs as, for subprocess: it refuses root, and gets the user that its package makes.

    Raises:
        InputError: there is none.
    """
    if os.geteuid() != 0:
        return {}
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        raise InputError(
            "Postgres refuses to run as root, and there is no user postgres. Run this as another user."
        ) from None
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


def start(place: Place, port: int, mark: str) -> Started:
    """Start Postgres, and make the cluster when there is none.

    Raises:
        InputError: it is not installed, or may not enter its folder.
        InfrastructureError: it did not start.
    """
    found, who = programs(), account()
    place.postgres.mkdir(mode=0o700, exist_ok=True)
    if who:
        shutil.chown(place.postgres, who["user"], who["group"])
    _check_may_enter(place.postgres, who)
    data = place.postgres / "data"
    if not (data / "PG_VERSION").exists():
        _make_cluster(place, found, who)
    command: list[str | Path] = [found / "postgres", "-D", data, "-h", HOST, "-p", str(port), "-k", place.postgres]
    return begin(
        command,
        place.postgres,
        place.log("postgres"),
        _plain(),
        mark,
        works=lambda: works(place, port),
        what="Postgres",
        seconds=_STARTUP_SECONDS,
        **who,
    )


def make_databases(place: Place, port: int) -> None:
    """A role for each server, with a password that only this user reads, and databases that are its own."""
    from psycopg2.extensions import encrypt_password
    from psycopg2.sql import SQL, Identifier, Literal

    with closing(_connect(place, port)) as connection:
        connection.autocommit = True  # a database is made outside of transactions
        cursor = connection.cursor()
        for role, databases in DATABASES.items():
            password = place.secret(f"postgres-{role}")
            # A statement that fails is logged with all it holds: it gets the verifier, not the password.
            verifier = encrypt_password(password, role, connection, "scram-sha-256")
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
            verb = "ALTER" if cursor.fetchone() else "CREATE"
            cursor.execute(SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(Identifier(role), Literal(verifier)))
            for database in databases:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
                if cursor.fetchone() is None:
                    cursor.execute(SQL("CREATE DATABASE {} OWNER {}").format(Identifier(database), Identifier(role)))
                    cursor.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(database)))


def address(driver: str, role: str, database: str, port: int) -> str:
    """A database's address without the password, which lies in the file that PGPASSFILE names."""
    return f"{driver}://{role}@{HOST}:{port}/{database}"


def password_file(place: Place, role: str, port: int) -> Path:
    """The file of a role's password, as Postgres' clients read it."""
    return place.private(f"{role}.pgpass", f"{HOST}:{port}:*:{role}:{place.secret(f'postgres-{role}')}\n")


def _make_cluster(place: Place, found: Path, who: dict[str, Any]) -> None:
    data, password = place.postgres / "data", place.postgres / "password"
    shutil.rmtree(data, ignore_errors=True)  # of an initdb that was killed
    try:
        password.touch(mode=0o600)
        password.write_text(place.secret(f"postgres-{_OWNER}"))
        if who:
            shutil.chown(password, who["user"], who["group"])
        make: list[str | Path] = [found / "initdb", "--pgdata", data, "--username", _OWNER, "--encoding", "UTF8"]
        make += ["--locale", "C", "--auth", "scram-sha-256", "--pwfile", password]
        with place.log("postgres").open("ab") as log:
            done = subprocess.run(make, cwd=place.postgres, stdout=log, stderr=log, env=_plain(), **who)
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise InfrastructureError(
                f"Postgres' initdb ended with status {done.returncode} (log: {place.log('postgres')})."
            )
    finally:
        password.unlink(missing_ok=True)


def _check_may_enter(folder: Path, who: dict[str, Any]) -> None:
    probe = subprocess.run(["/bin/sh", "-c", 'cd -- "$0"', folder], cwd="/", capture_output=True, **who)
    if probe.returncode:
        raise InputError(
            f"The user postgres may not enter {folder}, a folder above it is closed to others. "
            "Run this as another user than root, or keep the workspace elsewhere."
        )


def _plain() -> dict[str, str]:
    """Nothing of ours, least of all a secret, gets into Postgres' environment."""
    return {name: os.environ[name] for name in ("PATH", "TZ", "LANG") if name in os.environ}


def _connect(place: Place, port: int) -> Any:
    import psycopg2

    return psycopg2.connect(
        host=HOST,
        port=port,
        user=_OWNER,
        dbname="postgres",
        password=place.secret(f"postgres-{_OWNER}"),
        connect_timeout=5,
    )


def works(place: Place, port: int) -> bool:
    """Whether it answers us. Raises InfrastructureError: it answers, and not us."""
    import psycopg2

    try:
        _connect(place, port).close()
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            raise InfrastructureError(
                f"The Postgres at {HOST}:{port} does not know this stack's password ({redacted(str(error).strip())})."
            ) from None
        return False
    return True
