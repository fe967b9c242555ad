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
from tests.servers import installed
from tests.test_flows.conftest import ROOT, SERVER_AT, TINY, Commands
from tests.test_flows.test_stack.conftest import answer, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

_PATIENCE = 420  # seconds: two minutes of the clock, and two runs on a busy machine


@pytest.fixture
def clone(sources: Path) -> Iterator[Path]:
    """The repository as it is committed, with a tiny model, and the nightly schedule at every minute."""
    installed()
    folder = Path(tempfile.mkdtemp(prefix="dass-clone-"))  # not in pytest's, which Postgres' user may not enter
    folder.chmod(0o755)
    texts = str(sources / "c4.txt"), str(sources / "wiki.txt")
    params = make_workspace(folder / "tiny", str(sources / "model"), *texts, changes=TINY).params
    repository = folder / "repository"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(repository)], check=True)
    shutil.copy(params, repository / "params.yaml")
    deployments = repository / "prefect.yaml"
    text = deployments.read_text()
    deployments.write_text(text.replace('cron: "0 2 * * *"', 'cron: "* * * * *"'))
    assert deployments.read_text() != text
    commit = ["-c", "user.name=me", "-c", "user.email=me@home", "commit", "-qam", "Every minute, a tiny model"]
    subprocess.run(["git", *commit], cwd=repository, check=True)
    yield repository
    shutil.rmtree(folder, ignore_errors=True)


def test_a_schedule_of_every_minute_fires_twice_and_registers_to_postgres(clone: Path, commands: Commands) -> None:
    nobody = {name: value for name, value in commands.environment.items() if name not in SERVER_AT}
    nobody |= {"PYTHONPATH": str(clone), "PWD": str(clone), "PREFECT_HOME": str(clone.parent / "prefect")}
    anyone, ws = Commands(nobody), Workspace.at(clone)
    try:
        anyone(ws, "dass", "stack", "up", *free_ports())
        login = read_environment(Place.of(ws).account("runner"))
        runner = Commands({**nobody, **login})
        runner(ws, "prefect", "--no-prompt", "deploy", "--name", "nightly")
        ended = _wait_for_two_runs(login)
        assert [each["state_type"] for each in ended] == ["COMPLETED", "COMPLETED"], ended
        assert all(each["auto_scheduled"] for each in ended)
        told = answer(runner(ws, "dass", "history", "--json"))
        assert [each["version"] for each in told["versions"]] == ["1"]  # the second found nothing to do
        assert "proved" in runner(ws, "dass", "verify", "1").stdout
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
        )
        assert changed.stdout == ""
    finally:
        anyone(ws, "dass", "stack", "down", status=None)


def _wait_for_two_runs(login: dict[str, str]) -> list[dict[str, object]]:
    user, _, password = login["PREFECT_API_AUTH_STRING"].partition(":")
    asked: dict[str, Any] = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "START_TIME_ASC",
    }
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        page = f"{login['PREFECT_API_URL']}/flow_runs/filter"
        ended: list[dict[str, object]] = requests.post(page, json=asked, auth=(user, password), timeout=30).json()
        if len(ended) >= 2:
            return ended[:2]
        time.sleep(3)
    raise AssertionError(f"the schedule did not fire twice within {_PATIENCE} s")
