"""Options of `dass run`: --with, --until, --recipe; and the log that a run leaves."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from flows.cli.main import run_command
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.recipes import RECIPES
from tasks.workspace.settings import load_settings
from tasks.workspace.small_files import parse_yaml
from tests.test_flows.conftest import Commands

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, ws: Workspace, *options: str, status: int = 0) -> tuple[Any, str]:
    """Where nothing is to be done, so that Prefect is not wanted. Gives the answer and what was said."""
    capsys.readouterr()
    assert run_command(["run", "--json", "-w", str(ws.root), *options]) == status
    told = capsys.readouterr()
    return json.loads(told.out), told.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--until", "nonsense"], "--until is 'nonsense': expected one of sources, calibration"),
        (["--until", "prune", "--promote"], "--until registers nothing"),
        (["--dry-run", "--promote"], "--dry-run registers nothing"),
        (["--recipe", "nonsense"], "--recipe is 'nonsense'"),
        (["--with", "prune.sparsity"], "--with prune.sparsity: expected section.key=value"),
        (["--with", "prune.sparsity=2"], "between 0 and 1"),
        (["--with", "prune.colour=red"], "prune.colour: unknown key"),
        (["--with", "promote.max_ratio=9"], "--with promote.max_ratio: rules of promotion"),
        (["--with", "register.save_experiment=true"], "--with leaves params.yaml as it is"),
        (["--with", "register.model=other", "--promote"], "--with register.model leads to another model"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_changes_nothing(
    capsys: Capture, finished: Workspace, options: list[str], message: str
) -> None:
    before = finished.params.read_bytes()
    answer, said = run(capsys, finished, *options, status=2)
    assert message in answer["error"]["message"]
    assert said.splitlines()[-1].startswith("dass: ")
    assert finished.params.read_bytes() == before


def test_until_stops_behind_a_stage(capsys: Capture, finished: Workspace) -> None:
    answer, _ = run(capsys, finished, "--until", "prune")
    assert list(answer["stages"]) == ["sources", "calibration", "baseline", "prune"]
    assert answer["until"] == "prune"
    assert answer["open"] == {}


def test_a_recipe_is_written_and_refined(capsys: Capture, finished: Workspace) -> None:
    answer, said = run(capsys, finished, "--recipe", "quick", "-S", "calibration.samples=300", "--until", "sources")
    assert answer["recipe"] == "quick"
    assert answer["changed"]["prune.method"] == {"before": "dass", "now": "sparsegpt"}
    assert "recipe quick: calibration.samples=128, prune.method=sparsegpt" in said
    prune = load_settings(finished.params).prune
    assert (prune.method, prune.update) == ("sparsegpt", RECIPES["quick"]["prune.update"])
    assert load_settings(finished.params).calibration.samples == 300


def test_settings_for_one_run_leave_the_files_alone(capsys: Capture, finished: Workspace) -> None:
    before = [path.read_bytes() for path in (finished.params, finished.lock_file)]
    answer, said = run(capsys, finished, "--with", "prune.sparsity=0.3", "--until", "baseline")
    assert answer["with"] == ["prune.sparsity=0.3"]
    assert "params.yaml is as it was" in said
    assert [path.read_bytes() for path in (finished.params, finished.lock_file)] == before
    assert not list(finished.private.glob(".once*"))


@pytest.mark.slow
def test_settings_for_one_run_are_what_dvc_and_mlflow_record(
    capsys: Capture, commands: Commands, finished: Workspace
) -> None:
    before = {path: path.read_bytes() for path in (finished.params, finished.lock_file)}
    lock = finished.root / "dvc.lock"
    answer = commands.run(finished, "--with", "evaluate.samples=3")
    again = {name for name, outcome in answer["stages"].items() if outcome == "ran"}
    assert {"baseline", "evaluate"} <= again
    assert not {"sources", "calibration", "prune", "materialize"} & again
    assert {path: path.read_bytes() for path in before} == before
    recorded = parse_yaml(lock.read_text(), "dvc.lock")["stages"]["baseline"]["params"]["params.yaml"]
    assert recorded["evaluate.samples"] == 3
    with tracking(finished) as client:
        assert client.get_run(answer["run_id"]).data.params["evaluate.samples"] == "3"
    capsys.readouterr()
    assert run_command(["run", "--dry-run", "--json", "-w", str(finished.root)]) == 0
    plan = {each["stage"]: each for each in json.loads(capsys.readouterr().out)["stages"]}
    assert {name for name, each in plan.items() if each["outcome"] == "restored"} == again
    assert {name for name, each in plan.items() if each["outcome"] == "unchanged"} == set(plan) - again
    assert plan["baseline"]["why"] == ["evaluate.samples 3 -> 4"]


@pytest.mark.slow
def test_another_model_for_one_run_is_not_pinned_for_the_next(
    commands: Commands, finished: Workspace, first_answer: dict[str, Any]
) -> None:
    before = {path: path.read_bytes() for path in (finished.params, finished.lock_file)}
    lock = (finished.root / "dvc.lock").read_bytes()
    other = str(finished.base.resolve().parent.parent.parent / "other")
    finished.base.rename(other)
    try:
        answer = commands.run(finished, "--with", f"sources.model.uri={other}", "--with", "register.model=other")
    finally:
        commands(finished, "dvc", "checkout", status=None)
    assert (answer["model"], answer["version"]) == ("other", "1")
    assert {path: path.read_bytes() for path in before} == before
    back = commands.run(finished)
    assert (back["version"], back["created"], back["pruned"]) == ("1", False, first_answer["pruned"])
    assert (finished.root / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
def test_a_new_workspace_is_run_until_a_stage_and_then_to_the_end(
    commands: Commands, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    assert commands.run(ws, "--until", "calibration")["stages"] == {"sources": "ran", "calibration": "ran"}
    assert not (ws.root / "mlflow.db").exists()
    assert not ws.evaluation.exists()
    answer = commands.run(ws, "--recipe", "quick", "-S", "calibration.samples=64")
    assert answer["stages"]["sources"] == "unchanged"
    assert answer["method"] == "sparsegpt"
    assert answer["aliases"] == ["challenger"]


def test_a_run_leaves_a_log_without_secrets_and_old_ones_go(
    capsys: Capture, finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_TOKEN", "hunter2hunter2")
    monkeypatch.setattr("sys.argv", ["dass", "run", "--with", "x=hunter2hunter2"])
    logs = finished.private / "logs"
    logs.mkdir(exist_ok=True)
    for day in range(30):
        (logs / f"2020-01-{day + 1:02d}T00-00-00.log").write_text("old")
    run(capsys, finished, "--until", "sources", "-q")
    kept = sorted(logs.iterdir())
    assert len(kept) == 20
    text = kept[-1].read_text()
    assert re.search(r"INFO sources: unchanged\n", text)
    assert text.splitlines()[-1].endswith("INFO ended")
    assert "hunter2" not in text
