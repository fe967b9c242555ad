"""A stack that runs, one for all tests here, with tokens planted wherever a person may have given them."""

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from flows.initialise import make_workspace
from flows.stack.place import Place, read_environment
from tasks.workspace.folder import Workspace
from tests.servers import free_port, installed
from tests.test_flows.conftest import ROOT, SERVER_AT, TINY, Commands

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@dataclass(frozen=True)
class RunningStack:
    """It, and who speaks to it.

    Attributes:
        ws: whose stack it is.
        place: its folder.
        commands: run as nobody: without a login or an address.
        tokens: what was planted, name -> secret. Every process of the stack and every command has them.
    """

    ws: Workspace
    place: Place
    commands: Commands
    tokens: dict[str, str]

    def login(self, account: str) -> dict[str, str]:
        return read_environment(self.place.account(account))

    def as_account(self, account: str) -> Commands:
        return Commands({**self.commands.environment, **self.login(account)})

    def deployed(self, name: str) -> UUID:
        """A deployment of prefect.yaml for this workspace, with the code of this repository."""
        text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
        where = 'directory: "{{ $PWD }}"'
        assert where in text
        file = self.ws.root.parent / "prefect.yaml"
        file.write_text(text.replace(where, f'directory: "{ROOT}"'), encoding="utf-8")
        asked = ("--no-prompt", "deploy", "--prefect-file", str(file), "--name", name)
        self.as_account("runner")(Workspace(ROOT), "prefect", *asked, PWD=str(self.ws.root))
        with self.prefect() as client:
            (made,) = [each for each in client.read_deployments() if each.name == name]
        return UUID(str(made.id))

    @contextmanager
    def prefect(self) -> Iterator["SyncPrefectClient"]:
        """A client of its Prefect server."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        login = self.login("runner")
        at = {PREFECT_API_URL: login["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: login["PREFECT_API_AUTH_STRING"]}
        with temporary_settings(at), get_client(sync_client=True) as client:
            yield client

    def databases(self) -> dict[str, str]:
        """Name of a database -> every row of every table of it, as text."""
        import psycopg2

        ports = self.place.state().ports  # type: ignore[union-attr]
        told = {}
        for name in ("mlflow", "mlflow_auth", "prefect"):
            address = f"postgresql://dass@127.0.0.1:{ports.postgres}/{name}"
            with closing(psycopg2.connect(address, password=self.place.secret("postgres-dass"))) as connection:
                cursor = connection.cursor()
                cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
                rows = []
                for (table,) in cursor.fetchall():
                    cursor.execute(f'SELECT t::text FROM "{table}" t')
                    rows += [row for (row,) in cursor.fetchall()]
            told[name] = "\n".join(rows)
        return told


def planted() -> dict[str, str]:
    """Variables that hold secrets as people give them, each with one of its own in it."""
    values = {
        "HF_TOKEN": "hf_{}",
        "AWS_ACCESS_KEY_ID": "AKIA{}",
        "AWS_SECRET_ACCESS_KEY": "{}",
        "AWS_SESSION_TOKEN": "{}",
        "PREFECT_API_KEY": "pnu_{}",
        "PIP_INDEX_URL": "http://kim:{}@127.0.0.1:9/simple",
        "HTTPS_PROXY": "http://kim:{}@127.0.0.1:9",
        "OPENAI_API_KEY": "sk-{}",
    }
    return {name: value.format(secrets.token_hex(12)) for name, value in values.items()}


@pytest.fixture(scope="session")
def stack(commands: Commands, sources: Path) -> Iterator[RunningStack]:
    installed()
    folder = Path(tempfile.mkdtemp(prefix="dass-stack-"))  # not in pytest's, which Postgres' user may not enter
    folder.chmod(0o755)
    try:
        yield from _running(folder, commands, sources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _running(folder: Path, commands: Commands, sources: Path) -> Iterator[RunningStack]:
    texts = str(sources / "c4.txt"), str(sources / "wiki.txt")
    ws = make_workspace(folder / "ws", str(sources / "model"), *texts, changes=[*TINY, "calibration.samples=30"])
    for line in ("init -q", "add --all", "-c user.name=me -c user.email=me@home commit -q -m begun"):
        subprocess.run(["git", *line.split()], cwd=ws.root, check=True, capture_output=True)
    tokens = planted()
    nobody = {name: value for name, value in commands.environment.items() if name not in SERVER_AT}
    nobody |= {"PREFECT_HOME": str(folder / "prefect"), "NO_PROXY": "127.0.0.1", **tokens}
    made = RunningStack(ws, Place.of(ws), Commands(nobody), {name: _secret(value) for name, value in tokens.items()})
    try:
        made.commands(ws, "dass", "stack", "up", *free_ports())
        yield made
    finally:
        made.commands(ws, "dass", "stack", "down", status=None)


def free_ports() -> list[str]:
    names = ("mlflow", "prefect", "postgres", "worker")
    return [word for name in names for word in (f"--{name}-port", str(free_port()))]


def _secret(value: str) -> str:
    return value.rpartition("@")[0].rpartition(":")[2] or value


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)
