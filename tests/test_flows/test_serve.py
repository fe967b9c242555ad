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

from flows.environment import NOTHING_LEAVES
from flows.serve import _check_cron
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands, put_modules_of_the_users_own

ROOT = Path(__file__).parents[2]


def answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5):
            return True
    except OSError:
        return False


def test_a_schedule_fires_and_the_server_ends_with_it(commands: Commands, finished: Workspace) -> None:
    metrics = finished.metrics / "evaluation.json"
    metrics.unlink()  # the scheduled run restores it
    put_modules_of_the_users_own(finished.root)
    own = {**commands.environment, "PREFECT_HOME": str(finished.private / "prefect")}
    del own["PREFECT_API_URL"]
    every_ten_seconds = "* * * * * */10"
    process = Commands(own).start(finished, "dass", "serve", "--cron", every_ten_seconds, "--json")
    try:
        assert process.stdout is not None
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert (told["workspace"], told["cron"]) == (str(finished.root), every_ten_seconds)
        assert answers(told["api"])
        deadline = time.monotonic() + 90
        while not metrics.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no run within 90 seconds"
            time.sleep(0.2)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert not answers(told["api"])


@pytest.mark.parametrize("cron", ["", "0 2 * *", "61 * * * *", "every night"])
def test_what_is_no_schedule_is_refused_in_one_line(commands: Commands, finished: Workspace, cron: str) -> None:
    refused = commands(finished, "dass", "serve", "--cron", cron, status=2)
    assert refused.stderr.startswith(f'dass: --cron "{cron}" is not a schedule: expected minute hour day month weekday')
    assert len(refused.stderr.splitlines()) == 1


def test_a_server_that_does_not_answer_is_named(commands: Commands, finished: Workspace) -> None:
    for command in (["run"], ["serve", "--cron", "0 2 * * *"]):
        refused = commands(finished, "dass", *command, status=2, PREFECT_API_URL="http://127.0.0.1:9/api")
        assert refused.stderr.splitlines() == [
            "dass: PREFECT_API_URL is http://127.0.0.1:9/api: no Prefect server answers there. "
            "Start it, or unset the variable."
        ]


def deployment() -> dict[str, Any]:
    (only,) = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]
    return dict(only)


def test_the_work_pools_deployment_says_what_serve_says() -> None:
    told = deployment()
    (schedule,) = told["schedules"]
    _check_cron(schedule["cron"])
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
