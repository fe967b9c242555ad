"""Workspaces with a tiny model, real subprocesses, and one Prefect server that all of them share."""

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.cli.main import run_command
from flows.initialise import make_workspace
from flows.prefect_api import own_server
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.folder import Workspace
from tests.models import save_tiny_checkpoint, tiny_text

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).parents[2]
TINY = [
    "calibration.samples=300",
    "engine.batch_tokens=32",  # a window at a time: a layer takes long enough to be interrupted
    "calibration.sequence_length=32",
    "evaluate.samples=4",
    "evaluate.sequence_length=32",
    "engine.device=cpu",
    "register.model=tiny-dass",
]

SERVER_AT = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")


@dataclass(frozen=True)
class Commands:
    """Runs commands as a person would, each in a process of its own."""

    environment: dict[str, str]

    def __call__(
        self, ws: Workspace, *command: str, status: int | None = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the workspace and check its exit status (None: any)."""
        done = subprocess.run(
            self.argv(*command),
            cwd=ws.root,
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if status is not None:
            assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, ws: Workspace, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a command in the workspace, leader of its own process group."""
        return subprocess.Popen(
            self.argv(*command),
            cwd=ws.root,
            env={**self.environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def alone(self, home: Path) -> "Commands":
        """The same without a server that is up already: each command starts its own, whose database is in `home`."""
        own = {name: value for name, value in self.environment.items() if name not in SERVER_AT}
        return Commands({**own, "PREFECT_HOME": str(home)})

    def make_database(self, home: Path) -> None:
        """Put a copy of the shared server's database there: a server that starts makes one, for ten seconds."""
        home.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(Path(self.environment["PREFECT_HOME"]) / "prefect.db")) as ready,
            closing(sqlite3.connect(home / "prefect.db")) as own,
        ):
            ready.backup(own)

    def run(self, ws: Workspace, *options: str) -> dict[str, Any]:
        """`dass run --json`, its answer read."""
        answer: dict[str, Any] = json.loads(self(ws, "dass", "run", "--json", *options).stdout)
        return answer

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Flows in this process report to the shared server, whatever Prefect's settings were when it first read them.
        A test before may have had them read again."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        url, login = (self.environment[name] for name in SERVER_AT)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login}):
            yield

    @contextmanager
    def prefect(self) -> Iterator["SyncPrefectClient"]:
        """A client of the shared server."""
        from prefect.client.orchestration import get_client

        with self.reporting(), get_client(sync_client=True) as client:
            yield client

    @staticmethod
    def argv(tool: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", {"dass": "flows"}.get(tool, tool), *arguments]


def typed(ws: Workspace, *command: str, status: int = 0) -> tuple[str, str]:
    """What a command of `dass` prints and says, run in this process: starting one takes seconds."""
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        ended = run_command([*command, "--workspace", str(ws.root)])
    assert ended == status, f"{command}: {ended}\n{printed.getvalue()}\n{said.getvalue()}"
    return printed.getvalue(), said.getvalue()


def put_modules_of_the_users_own(folder: Path) -> None:
    """Files that are called like modules of ours, of our libraries and of Python; whoever imports one ends."""
    (folder / "flows").mkdir()
    for name in ("tasks", "dass", "torch", "typing", "prefect", "uvicorn", "flows/__init__"):
        (folder / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")


def cache_of_their_own(folder: Path) -> Path:
    """What tests keep is not the user's, whose forecasts rest on it; what was fetched, by its digest, is."""
    fetched = cache_folder() / "sha256"
    fetched.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "sha256").symlink_to(fetched)
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Commands with a quiet environment and a Prefect server that is up already."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DASS_CACHE": str(cache_of_their_own(home / "dass")),
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "GIT_CEILING_DIRECTORIES": "/",
    }
    dropped = {"MLFLOW_TRACKING_URI", *SERVER_AT, "DASS_WORKSPACE", "DVC_ROOT"}
    environment = {**{name: value for name, value in os.environ.items() if name not in dropped}, **ours}
    with pytest.MonkeyPatch.context() as patch:
        for name in dropped:
            patch.delenv(name, raising=False)
        for name, value in ours.items():
            patch.setenv(name, value)
        with own_server():
            yield Commands({**environment, **{name: os.environ[name] for name in SERVER_AT}})


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model ("model") and two texts ("c4.txt", "wiki.txt")."""
    folder = tmp_path_factory.mktemp("sources")
    save_tiny_checkpoint(folder / "model")
    text = tiny_text(500)
    (folder / "c4.txt").write_text(text[: len(text) // 2])
    (folder / "wiki.txt").write_text(text[len(text) // 2 :])
    return folder


@pytest.fixture
def new_workspace(commands: Commands, sources: Path, tmp_path: Path) -> Callable[[], Workspace]:
    """Makes workspaces in which nothing has run."""
    made: list[Workspace] = []

    def make() -> Workspace:
        folder = tmp_path / f"ws{len(made)}"
        texts = str(sources / "c4.txt"), str(sources / "wiki.txt")
        made.append(make_workspace(folder, str(sources / "model"), *texts, changes=TINY))
        return made[-1]

    return make


@pytest.fixture(scope="session")
def _finished(
    commands: Commands, sources: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished") / "ws"
    texts = str(sources / "c4.txt"), str(sources / "wiki.txt")
    ws = make_workspace(folder, str(sources / "model"), *texts, changes=TINY)
    return ws, commands.run(ws)


@pytest.fixture(scope="session")
def first_answer(_finished: tuple[Workspace, dict[str, Any]]) -> dict[str, Any]:
    """What the first `dass run --json` of the finished workspace printed."""
    return _finished[1]


@pytest.fixture
def finished(_finished: tuple[Workspace, dict[str, Any]], tmp_path: Path) -> Workspace:
    """A copy of a workspace in which `dass run` has run once."""
    return Workspace.at(shutil.copytree(_finished[0].root, tmp_path / "finished"))
