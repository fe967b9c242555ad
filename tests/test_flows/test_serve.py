"""Schedules that fire for real."""

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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prefect.context import FlowRunContext

from dass.errors import InputError
from flows.cli.serving import _tell_of_pages, _tell_of_schedule
from flows.serve import serve_schedule
from flows.served import obey_schedule
from flows.timetable import Timetable
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Owner
from tests.test_flows.conftest import Commands, put_modules_of_the_users_own, typed

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


def committed(ws: Workspace) -> None:
    for command in (("init", "-q"), ("add", "."), ("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "1")):
        subprocess.run(["git", "-C", str(ws.root), *command], check=True)


def of_the_person(ws: Workspace) -> dict[str, bytes]:
    """Every file of the workspace but for what git, DVC, MLflow and dass keep for themselves."""
    kept = (".git/", ".dvc/cache/", ".dvc/tmp/", ".dass/", "mlflow.db", "mlartifacts/")
    return {name: content for name, content in files_of(ws.root).items() if not name.startswith(kept)}


@pytest.mark.faults("kill -9 of a run")
@pytest.mark.faults("two schedulers on one workspace")
@pytest.mark.slow
def test_a_cron_schedule_fires_twice_in_a_checkout_and_goes_on_behind_a_killed_run(
    commands: Commands, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    committed(ws)
    ws.params.write_text(ws.params.read_text() + "# not committed\n")
    before = of_the_person(ws)
    alone = commands.alone(ws.private / "prefect")
    serve = ("dass", "serve", "--cron", "* * * * *", "--timezone", "Asia/Kolkata", "-S", "prune.sparsity=0.4")
    process = alone.start(ws, *serve)
    there = Workspace(ws.private / "checkout", keeper=ws.root)
    said: list[str] = []

    def hear(what: str) -> str:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if what in line:
                return line
        raise AssertionError(said)

    try:
        hear("in .dass/checkout.")
        assert " IST." in hear("The next run starts at ")
        hear("starts")
        second = commands(ws, "dass", "serve", "--cron", "* * * * *", status=2)
        assert "is held by another run" in second.stderr
        deadline = time.monotonic() + 120
        while not any(there.work.glob("*/layer_000.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        owner = Owner.read((there.private / "lock").read_text())
        assert owner is not None
        os.kill(owner.pid, signal.SIGKILL)
        assert "ended: Crashed" in hear("ended")
        (first,) = there.work.glob("*/layer_000.safetensors")
        layer = first.stat().st_mtime_ns
        hear("starts")
        assert "ended: Completed, version 1, " in hear("ended")
        hear("The next run starts at ")
        assert first.stat().st_mtime_ns == layer
        process.terminate()
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert of_the_person(ws) == before
    with tracking(ws) as client:
        (made,) = client.search_model_versions("name = 'tiny-dass'")
        runs = client.search_runs([client.get_experiment_by_name("dass").experiment_id], "tags.ended != ''")
    assert [(run.info.status, run.data.tags["ended"]) for run in runs] == [
        ("KILLED", "its process was killed"),
    ]
    assert (ws.root / "mlartifacts").is_dir()
    assert not (there.root / "mlflow.db").exists()
    answer = commands.run(ws, "--with", "prune.sparsity=0.4")
    assert (answer["version"], answer["created"]) == (str(made.version), False)
    assert set(answer["stages"].values()) == {"restored"}
    assert of_the_person(ws)["params.yaml"] == before["params.yaml"]


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
    when: dict[str, Any] = {
        "cron": "0 2 * * *",
        "timezone": "Europe/Berlin",
        "jitter": 60,
        "changes": ["prune.sparsity=0.6"],
    }
    when |= {"revision": "main"}
    told: dict[str, Any] = {"event": "scheduled", "workspace": "/ws", **when, "ui": "http://127.0.0.1:1"}
    ways = (None, {"password": "dass:s3cr3t", "chosen": None}, {"password": None, "chosen": "profile x"})
    said = []
    for told["login"] in ways:
        _tell_of_schedule(told)
        first, second, *rest = capsys.readouterr().err.splitlines()
        assert first == (
            'compress runs in /ws at "0 2 * * *" (Europe/Berlin, up to 60 s later) with prune.sparsity=0.6. '
            "Stop with Ctrl-C."
        )
        assert second == "Each run works with what is committed at main, in .dass/checkout."
        said.append(rest)
    assert said == [
        ["Prefect UI: http://127.0.0.1:1"],
        ["Prefect UI: http://127.0.0.1:1", "Password for now: dass:s3cr3t"],
        ["Prefect UI: http://127.0.0.1:1", "Its password is the one of profile x."],
    ]


def test_what_is_no_schedule_is_refused_in_one_line(finished: Workspace) -> None:
    _, said = typed(finished, "serve", "--cron", "0 2 * *", status=2)
    assert said.startswith('dass: --cron "0 2 * *" is not a schedule: expected minute hour day month weekday')
    assert len(said.splitlines()) == 1


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


@pytest.mark.parametrize(
    ("auto", "late", "waits"), [(True, 0.0, True), (True, 10_000.0, False), (True, -3_600.0, True), (False, 0.0, False)]
)
def test_a_run_waits_its_share_of_the_jitter_and_never_longer(
    monkeypatch: pytest.MonkeyPatch, auto: bool, late: float, waits: bool
) -> None:
    """Late: it waited for the run before; earlier than it is due: the clock was set back."""
    due = datetime.now(UTC) - timedelta(seconds=late)
    run = SimpleNamespace(auto_scheduled=auto, expected_start_time=due)
    monkeypatch.setattr(FlowRunContext, "get", lambda: SimpleNamespace(flow_run=run))
    monkeypatch.setenv("DASS_SERVED_WORKSPACE", "/ws")
    monkeypatch.setenv("DASS_SERVED_JITTER", "600")
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    obey_schedule("/ws", ["prune.sparsity=0.6"])  # no changes are named, so any may come
    share = Timetable("* * * * *", jitter=600).delay("/ws", due)
    assert bool(waited) == waits
    assert all(share - 5 <= seconds <= share for seconds in waited)
    monkeypatch.setenv("DASS_SERVED_CHANGES", "[]")
    with pytest.raises(InputError, match=r"changes is \['prune.sparsity=0.6'\]: this schedule works with \[\] only"):
        obey_schedule("/ws", ["prune.sparsity=0.6"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("promote.min_ratio=1", r"-S promote.min_ratio: rules of promotion hold for every run"),
        ("prune.sparsety=0.4", r"prune.sparsety"),
        ("register.save_experiment=true", r"-S leaves params.yaml as it is"),
    ],
)
def test_settings_that_a_schedule_cannot_have_are_refused(finished: Workspace, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve_schedule(finished, Timetable("0 2 * * *"), [change], "HEAD", lambda told: None)


def test_a_revision_of_a_folder_without_git_is_refused(finished: Workspace) -> None:
    with pytest.raises(InputError, match=r"--revision is 'main', and .* has no commits"):
        serve_schedule(finished, Timetable("0 2 * * *"), [], "main", lambda told: None)
