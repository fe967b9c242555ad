"""From a fresh clone: the stack, the deployments, and a schedule of every minute that a worker really runs twice."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from flows.initialise import make_workspace
from flows.stack.place import Place, read_environment
from tasks.workspace.folder import Workspace
from tests.remote_servers import add_remotes, s3_server, ssh_server
from tests.servers import installed
from tests.test_flows.conftest import ROOT, SERVER_AT, TINY, Commands
from tests.test_flows.test_stack.conftest import answer, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

_PATIENCE = {"tiny": 420, "SmolLM2-135M": 1500}  # seconds: two minutes of the clock, and two runs on a busy machine


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in pytest's, which Postgres' user may not enter."""
    made = Path(tempfile.mkdtemp(prefix="dass-clone-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(params=list(_PATIENCE))
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clone(folder: Path, model: str, sources: Path) -> Path:
    """The repository as it is committed, the nightly schedule at every minute, and the model."""
    installed()
    repository = folder / "repository"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(repository)], check=True)
    if model == "tiny":
        texts = str(sources / "c4.txt"), str(sources / "wiki.txt")
        params = make_workspace(folder / "tiny", str(sources / "model"), *texts, changes=TINY).params
        shutil.copy(params, repository / "params.yaml")
    _replace(repository / "prefect.yaml", 'cron: "0 2 * * *"', 'cron: "* * * * *"')
    return repository


def test_a_schedule_of_every_minute_fires_twice_registers_and_pushes_and_a_second_clone_verifies(
    clone: Path, model: str, folder: Path, commands: Commands
) -> None:
    nobody = {name: value for name, value in commands.environment.items() if name not in SERVER_AT}
    nobody |= {"PYTHONPATH": str(clone), "PWD": str(clone), "PREFECT_HOME": str(folder / "prefect")}
    with ssh_server(folder / "ssh") as ssh, s3_server(folder / "s3") as s3:
        anyone, ws = Commands({**nobody, **s3.environment}), Workspace.at(clone)
        add_remotes(ws, anyone, ssh, s3, folder / "host")
        _replace(ws.params, "remotes: null", "remotes: [host, bucket]")
        _commit(clone)
        try:
            anyone(ws, "dass", "stack", "up", *free_ports())
            login = read_environment(Place.of(ws).account("runner"))
            runner = Commands({**anyone.environment, **login})
            runner(ws, "prefect", "--no-prompt", "deploy", "--name", "nightly")
            ended = _wait_for_two_runs(login, _PATIENCE[model])
            assert [each["state_type"] for each in ended] == ["COMPLETED", "COMPLETED"], ended
            assert all(each["auto_scheduled"] for each in ended)
            told = answer(runner(ws, "dass", "history", "--json"))
            assert [each["version"] for each in told["versions"]] == ["1"]  # the second found nothing to do
            assert s3.objects()
            assert any((folder / "host").iterdir())
            assert _git(clone, "status", "--porcelain") == ""
            for remote in ("host", "bucket"):
                second = Workspace(folder / f"second-{remote}")
                _git(folder, "clone", "--quiet", str(clone), str(second.root))
                runner(second, "dvc", "remote", "modify", "--local", "host", "keyfile", str(ssh.key))
                runner(second, "dvc", "remote", "default", "--local", remote)
                there = {"PYTHONPATH": str(second.root), "PWD": str(second.root)}
                assert "proved" in runner(second, "dass", "verify", "1", "--replay", status=0, **there).stdout
        finally:
            anyone(ws, "dass", "stack", "down", status=None)


def _replace(file: Path, text: str, by: str) -> None:
    before = file.read_text()
    assert text in before
    file.write_text(before.replace(text, by))


def _commit(repository: Path) -> None:
    _git(repository, "add", "--all")
    _git(repository, "-c", "user.name=me", "-c", "user.email=me@home", "commit", "-qm", "Every minute, to two remotes")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def _wait_for_two_runs(login: dict[str, str], patience: int) -> list[dict[str, object]]:
    user, _, password = login["PREFECT_API_AUTH_STRING"].partition(":")
    asked: dict[str, Any] = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "START_TIME_ASC",
    }
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        page = f"{login['PREFECT_API_URL']}/flow_runs/filter"
        ended: list[dict[str, object]] = requests.post(page, json=asked, auth=(user, password), timeout=30).json()
        if len(ended) >= 2:
            return ended[:2]
        time.sleep(3)
    raise AssertionError(f"the schedule did not fire twice within {patience} s")
