"""Schedules: one that fires for real, and the deployment for a work pool."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dass.errors import InputError
from flows.environment import NOTHING_LEAVES
from flows.serve import check_cron
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands, put_modules_of_the_users_own

ROOT = Path(__file__).parents[2]


def answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5):
            return True
    except OSError:
        return False


def ask(api: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request to Prefect's API: GET, or POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_schedule_is_kept_its_runs_work_and_the_server_ends_with_it(commands: Commands, finished: Workspace) -> None:
    metrics = finished.metrics / "evaluation.json"
    metrics.unlink()  # the scheduled run restores it
    put_modules_of_the_users_own(finished.root)
    own = {**commands.environment, "PREFECT_HOME": str(finished.private / "prefect")}
    del own["PREFECT_API_URL"]
    every_minute = "* * * * *"
    process = Commands(own).start(finished, "dass", "serve", "--cron", every_minute, "--json")
    try:
        assert process.stdout is not None
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert "workspace" in told, told
        assert (told["workspace"], told["cron"]) == (str(finished.root), every_minute)
        assert answers(told["api"])
        deadline = time.monotonic() + 120
        planned: list[Any] = []
        while not planned:  # the server plans the next runs soon after it has heard of the schedule
            assert time.monotonic() < deadline, "no run was planned"
            time.sleep(0.5)
            planned = ask(told["api"], "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        ask(told["api"], f"/deployments/{planned[0]['deployment_id']}/create_flow_run", {})  # one more, at once
        while not metrics.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no run within two minutes"
            time.sleep(0.2)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not answers(told["api"])


@pytest.mark.parametrize(
    "cron",
    [
        *("", "0 2 * *", "61 * * * *", "every night", "* * * * * */10", "@reboot", "@daily", "*/0 * * * *"),
        *("0 2 * * 8", "0 24 * * *", "0 0 0 * *", "TZ=UTC 0 2 * * *", "CRON_TZ=Europe/Berlin 0 2 * * *", "R * * * *"),
    ],
)
def test_what_is_no_schedule_of_five_fields_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match=r"is not a schedule: expected minute hour day month weekday"):
        check_cron(cron)


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 30 2 *", "0 2 31 4,6 *"])
def test_a_schedule_that_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match="never fires"):
        check_cron(cron)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 2 * * 7", "0 2 * * mon-fri", "*/15 8-18 * * 1-5"])
def test_a_schedule_that_fires_is_taken(cron: str) -> None:
    check_cron(cron)


def test_what_is_no_schedule_is_refused_in_one_line(commands: Commands, finished: Workspace) -> None:
    refused = commands(finished, "dass", "serve", "--cron", "0 2 * *", status=2)
    assert refused.stderr.startswith('dass: --cron "0 2 * *" is not a schedule: expected minute hour day month weekday')
    assert len(refused.stderr.splitlines()) == 1


def deployment() -> dict[str, Any]:
    (only,) = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    return dict(only)


def test_the_work_pools_deployment_says_what_serve_says() -> None:
    told = deployment()
    (schedule,) = told["schedules"]
    check_cron(schedule["cron"])
    assert (schedule["cron"], schedule["timezone"], told["concurrency_limit"]) == ("0 2 * * *", "UTC", 1)
    assert told["work_pool"]["job_variables"]["env"] == NOTHING_LEAVES


def test_prefect_takes_the_deployment(commands: Commands) -> None:
    root = Workspace(ROOT)
    commands(root, "prefect", "work-pool", "create", "dass", "--type", "process")
    commands(root, "prefect", "--no-prompt", "deploy", "--all", PWD=str(ROOT))
    inspected = commands(root, "prefect", "deployment", "inspect", "compress/nightly", "--output", "json").stdout
    told = json.loads(inspected)
    assert told["entrypoint"] == deployment()["entrypoint"]
    assert told["parameters"] == {"workspace": str(ROOT)}
    assert [schedule["schedule"]["cron"] for schedule in told["schedules"]] == ["0 2 * * *"]


def test_the_server_ends_when_its_starter_is_killed(commands: Commands, tmp_path: Path) -> None:
    code = (
        "import time; from flows.prefect_api import own_server\n"
        "with own_server() as api: print(api, flush=True); time.sleep(600)"
    )
    own = {**commands.environment, "PREFECT_HOME": str(tmp_path)}
    argv = [Commands.argv("x")[0], "-c", code]
    process = subprocess.Popen(argv, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    api = process.stdout.readline().strip()
    assert answers(api)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while answers(api):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.1)
