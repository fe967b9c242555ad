"""Schedules: one that fires for real, and the deployment for a work pool."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from dass.errors import InputError
from flows.cli.pipeline import _tell_of_pages, _tell_of_schedule
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


@dataclass(frozen=True)
class Api:
    """Prefect's API, to one who logs in."""

    url: str
    login: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request: GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        basic = base64.b64encode(self.login.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data, headers), timeout=30) as answer:
            return json.load(answer)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_schedule_is_kept_its_runs_work_and_the_server_ends_with_it(
    commands: Commands, finished: Workspace, tmp_path: Path
) -> None:
    foreign = Path(shutil.copytree(finished.root, tmp_path / "foreign"))
    untouched = files_of(foreign)
    metrics = finished.metrics / "evaluation.json"
    metrics.unlink()  # the scheduled run restores it
    put_modules_of_the_users_own(finished.root)
    every_minute = "* * * * *"
    alone = commands.alone(finished.private / "prefect")
    process = alone.start(finished, "dass", "serve", "--cron", every_minute, "--json")
    try:
        assert process.stdout is not None
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert told["login"]["chosen"] is None
        api = Api(told["api"], told["login"]["password"])
        with urllib.request.urlopen(f"{told['ui']}/ui-settings", timeout=30) as settings:
            ui = json.load(settings)
        assert (ui["api_url"], ui["auth"]) == (
            "/api",
            "BASIC",
        )  # it asks for the password, and where it was loaded from
        assert "workspace" in told, told
        assert (told["workspace"], told["cron"]) == (str(finished.root), every_minute)
        assert answers(told["api"])
        deadline = time.monotonic() + 120
        planned: list[Any] = []
        while not planned:  # the server plans the next runs soon after it has heard of the schedule
            assert time.monotonic() < deadline, "no run was planned"
            time.sleep(0.5)
            planned = api.ask("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        create = f"/deployments/{planned[0]['deployment_id']}/create_flow_run"
        refused = api.ask(create, {"parameters": {"workspace": str(foreign)}})["id"]
        api.ask(create, {})  # one more, at once
        while not metrics.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no run within two minutes"
            time.sleep(0.2)
        while (state := api.ask(f"/flow_runs/{refused}")["state"])["type"] in ("SCHEDULED", "PENDING", "RUNNING"):
            assert time.monotonic() < deadline, state
            time.sleep(0.2)
        assert state["type"] == "FAILED"
        assert f'this schedule works in "{finished.root}" only' in state["message"]
        for working in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            assert api.login not in " ".join(working.cmdline())
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not answers(told["api"])
    assert files_of(foreign) == untouched
    password = api.login.partition(":")[2]
    assert password not in errors
    assert not [name for name, content in files_of(finished.root).items() if password.encode() in content]


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [None, "me:my-own-choice"])
def test_the_ui_is_shown_to_who_knows_the_password(commands: Commands, finished: Workspace, chosen: str | None) -> None:
    environment = {} if chosen is None else {"PREFECT_SERVER_API_AUTH_STRING": chosen}
    process = commands.alone(finished.private / "prefect").start(finished, "dass", "ui", **environment)
    try:
        assert process.stderr is not None
        said: dict[str, str] = {}
        for line in process.stderr:
            what, _, how = line.partition(": ")
            said[what] = how.strip()
            if line.startswith(("Its", "Password")):
                break
        ui = said["Prefect UI"].removesuffix("/runs")
        with urllib.request.urlopen(said["MLflow UI"], timeout=30) as page:
            assert b"<title>MLflow</title>" in page.read()
        mlflow, number = said["MLflow UI"], said["MLflow experiment"].split("/")[-2]
        asked = f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id={number}"
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.load(answer)["experiment"]["name"] == "dass"
        assert said["MLflow model"] == f"{mlflow}/#/models/tiny-dass"
        if chosen is None:
            login = said["Password for now"]
        else:
            login = chosen
            assert line == "Its password is the one of environment variable PREFECT_SERVER_API_AUTH_STRING.\n"
        assert Api(f"{ui}/api", login).ask("/flow_runs/count", {}) == 0
        with pytest.raises(urllib.error.HTTPError, match="401"):
            Api(f"{ui}/api", "dass:guessed").ask("/flow_runs/count", {})
        with urllib.request.urlopen(ui, timeout=30) as page:
            assert b"<title>Prefect Server</title>" in page.read()
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(ui, headers={"Host": "evil.example"}), timeout=30)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not answers(f"{ui}/api")
    assert not answers(mlflow)


def test_a_password_of_the_users_own_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"workspace": "/ws", "cron": "0 2 * * *", "ui": "http://127.0.0.1:1", "login": None}
    ways = (None, {"password": "dass:s3cr3t", "chosen": None}, {"password": None, "chosen": "profile x"})
    said = []
    for told["login"] in ways:
        _tell_of_schedule(told)
        said.append(capsys.readouterr().err.splitlines()[1:])
    assert said == [
        ["Prefect UI: http://127.0.0.1:1"],
        ["Prefect UI: http://127.0.0.1:1", "Password for now: dass:s3cr3t"],
        ["Prefect UI: http://127.0.0.1:1", "Its password is the one of profile x."],
    ]


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
    assert told["work_pool"]["job_variables"]["env"] == {**NOTHING_LEAVES, "DASS_SERVED_WORKSPACE": "{{ $PWD }}"}
    assert told["parameters"] == {"workspace": "{{ $PWD }}"}


def test_prefect_takes_the_deployment(commands: Commands) -> None:
    root = Workspace(ROOT)
    commands(root, "prefect", "work-pool", "create", "dass", "--type", "process")
    commands(root, "prefect", "--no-prompt", "deploy", "--all", PWD=str(ROOT))
    inspected = commands(root, "prefect", "deployment", "inspect", "compress/nightly", "--output", "json").stdout
    told = json.loads(inspected)
    assert told["entrypoint"] == deployment()["entrypoint"]
    assert told["parameters"] == {"workspace": str(ROOT)}
    assert told["job_variables"]["env"]["DASS_SERVED_WORKSPACE"] == str(ROOT)
    assert [schedule["schedule"]["cron"] for schedule in told["schedules"]] == ["0 2 * * *"]


def test_the_server_ends_when_its_starter_is_killed(commands: Commands, tmp_path: Path) -> None:
    code = (
        "import time; from flows.prefect_api import own_server\n"
        "with own_server() as server: print(server.api, flush=True); time.sleep(600)"
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


def test_pages_are_told_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """An address's fragment and query are no secret where MLflow's pages are named by them."""
    runs = "http://127.0.0.1:2/#/experiments/1/runs?viewStateShareKey=x"
    pages = {"ui": "http://127.0.0.1:2", "experiment": runs, "model": "http://127.0.0.1:2/#/models/m"}
    _tell_of_pages({"mlflow": pages, "runs": "http://127.0.0.1:1/runs", "login": None})
    assert capsys.readouterr().err.splitlines() == [
        "MLflow UI: http://127.0.0.1:2",
        f"MLflow experiment: {runs}",
        "MLflow model: http://127.0.0.1:2/#/models/m",
        "Prefect UI: http://127.0.0.1:1/runs",
    ]
