"""The flow on a tiny model: what it leaves, what it skips, and what a kill or a second run does to it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)

from dass.files import read_json
from flows.compress import BEHIND, compress
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands, put_modules_of_the_users_own, typed

UNCHANGED = dict.fromkeys(
    ("sources", "calibration", "baseline", "prune", "recover", "materialize", "evaluate", "tasks", "plots"), "unchanged"
)


def set_value(ws: Workspace, line_start: str, value: str) -> None:
    """Edit params.yaml as a person would."""
    lines = ws.params.read_text().splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if line.strip().startswith(line_start)]
    lines[at] = f"{lines[at].split(':')[0]}: {value}\n"
    ws.params.write_text("".join(lines))


def digests(ws: Workspace) -> dict[str, str]:
    return {name: read_json(ws.masks / "manifest.json")[name]["digest"] for name in ("masks", "base", "calibration")}


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_run_prunes_measures_and_registers(first_answer: dict[str, Any]) -> None:
    assert first_answer["stages"] == dict.fromkeys(UNCHANGED, "ran")
    assert first_answer["dense"] > 1.0
    assert first_answer["ratio"] == first_answer["pruned"] / first_answer["dense"]
    assert first_answer["sparsity"]["mlp"] == 0.5
    assert (first_answer["model"], first_answer["version"], first_answer["created"]) == ("tiny-dass", "1", True)
    asked = {name: first_answer[name] for name in ("method", "pattern", "update", "aliases")}
    assert asked == {"method": "dass", "pattern": "unstructured", "update": "none", "aliases": ["challenger"]}
    assert first_answer["command_seconds"] >= sum(first_answer["seconds"].values())
    assert set(first_answer["open"]) == {"MLflow UI", "Prefect UI", "this result", "report"}


def test_mlflow_and_prefect_name_each_others_run_and_mlflow_has_the_page(
    commands: Commands, first_answer: dict[str, Any], finished: Workspace
) -> None:
    with tracking(finished) as client:
        tags = client.get_run(first_answer["run_id"]).data.tags
        assert "report.html" in {file.path for file in client.list_artifacts(first_answer["run_id"])}
    with commands.prefect() as prefect:
        run = prefect.read_flow_run(UUID(tags["prefect.flow_run_id"]))
        artifacts = prefect.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    assert run.name == tags["prefect.flow_run_name"]
    assert tags["prefect.flow_run_url"].endswith(f"/flow-runs/flow-run/{run.id}")
    shown = {artifact.key: artifact for artifact in artifacts}
    assert set(shown) == {"mlflow", "result", "layers", "prune"}
    link = str(shown["mlflow"].data)
    assert f"MLflow run `{first_answer['run_id']}`" in link
    assert "registered model `tiny-dass`, version `1`" in link
    assert f"| ratio | {first_answer['ratio']:.3f} |" in str(shown["result"].data)
    layers = json.loads(str(shown["layers"].data))
    assert [row["layer"] for row in layers] == list(range(len(layers)))
    assert {row["sparsity of gate_proj"] for row in layers} == {"50.00%"}
    assert shown["prune"].data == 100.0
    assert f"layer {len(layers)} of {len(layers)}" in str(shown["prune"].description)


def test_prefects_run_is_called_after_its_work_and_its_tasks_stand_behind_each_other(
    commands: Commands, first_answer: dict[str, Any], finished: Workspace
) -> None:
    with tracking(finished) as client:
        tags = client.get_run(first_answer["run_id"]).data.tags
    flow_run = UUID(tags["prefect.flow_run_id"])
    with commands.prefect() as prefect:
        run = prefect.read_flow_run(flow_run)
        tasks = prefect.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    assert run.name == "tiny-dass: dass 50%"
    assert {"tiny-dass", "dass", "unstructured"} <= set(run.tags)
    names = {task.id: task.name.rpartition("-")[0] or task.name for task in tasks}  # Prefect numbers its own
    behind = {
        names[task.id]: {
            names[each.id] for inputs in task.task_inputs.values() for each in inputs if hasattr(each, "id")
        }
        for task in tasks
    }
    assert behind["calibrate"] == behind["measure dense"] == {"fetch"}
    first, *layers = sorted(name for name in behind if name.startswith("prune layer"))
    assert behind[first] == {"calibrate"}
    for before, layer in zip([first, *layers], layers, strict=False):
        assert behind[layer] == {before}
    assert behind["recover"] == {[first, *layers][-1]}
    assert behind["materialize"] == {"recover"}
    assert behind["measure pruned"] == {"measure dense", "materialize"}
    assert behind["draw"] == {"measure pruned", "ask tasks"}
    assert {"draw", "ask tasks"} <= behind["register"]
    assert behind["draw the report"] == {"register"}


def test_the_stages_stand_behind_those_whose_outputs_they_read() -> None:
    stages = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    made = {out if isinstance(out, str) else next(iter(out)): name for name in BEHIND for out in outs_of(stages[name])}

    def all_behind(name: str) -> set[str]:
        return set(BEHIND[name]).union(*map(all_behind, BEHIND[name]))

    for name in BEHIND:
        assert {made[dep] for dep in stages[name]["deps"] if dep in made} <= all_behind(name), name


def outs_of(stage: dict[str, Any]) -> list[Any]:
    return [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]


def test_a_page_that_is_gone_is_drawn_again(commands: Commands, finished: Workspace) -> None:
    before = finished.report.read_bytes()
    finished.report.unlink()
    with commands.reporting():
        assert compress(str(finished.root)).stages == UNCHANGED
    assert finished.report.read_bytes() == before


def test_after_a_run_dvc_is_clean_and_a_second_run_does_nothing(commands: Commands, finished: Workspace) -> None:
    assert "up to date" in commands(finished, "dvc", "status").stdout
    assert "Running stage" not in commands(finished, "dvc", "repro").stdout
    lock = (finished.root / "dvc.lock").read_bytes()
    home = finished.private / "prefect"
    answer = commands.alone(home).run(finished)
    assert answer["stages"] == UNCHANGED
    assert (answer["version"], answer["created"]) == ("1", False)
    assert (finished.root / "dvc.lock").read_bytes() == lock
    assert not home.exists()  # Prefect was not even asked
    told, _ = typed(finished, "run")
    assert "dense perplexity" in told
    assert "dass show" in told or "-m flows show" in told


@pytest.mark.slow
def test_dvc_repro_alone_makes_the_same_bytes(
    commands: Commands, finished: Workspace, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    put_modules_of_the_users_own(ws.root)
    commands(ws, "dvc", "repro")
    assert (ws.root / "dvc.lock").read_bytes() == (finished.root / "dvc.lock").read_bytes()
    assert digests(ws) == digests(finished)


@pytest.mark.slow
def test_changed_prune_settings_prune_again_and_restore_when_changed_back(
    commands: Commands, finished: Workspace, first_answer: dict[str, Any]
) -> None:
    answer = commands.run(finished, "-S", "prune.sparsity=0.25")
    assert answer["changed"] == {"prune.sparsity": {"before": 0.5, "now": 0.25}}
    assert answer["sparsity"]["mlp"] == 0.25
    ran = {name for name, outcome in answer["stages"].items() if outcome == "ran"}
    assert ran == {"prune", "recover", "materialize", "evaluate", "tasks", "plots"}
    assert answer["version"] == "2"

    dry = json.loads(commands(finished, "dass", "run", "--dry-run", "--json", "-S", "prune.sparsity=0.5").stdout)
    assert {each["stage"] for each in dry["stages"] if each["outcome"] == "restored"} == ran
    back = commands.run(finished, "-S", "prune.sparsity=0.5")
    assert {name for name, outcome in back["stages"].items() if outcome == "restored"} == ran
    assert back["pruned"] == first_answer["pruned"]
    assert (back["version"], back["created"]) == ("1", False)


@pytest.mark.faults("kill -9 of a run")
@pytest.mark.slow
def test_a_killed_run_goes_on_behind_its_last_finished_layer(
    commands: Commands, finished: Workspace, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    process = commands.start(ws, "dass", "run", DASS_DEBUG="1")
    try:
        wait_for(lambda: process.poll() is not None or any(ws.work.glob("*/layer_000.safetensors")), seconds=120)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        _end_group(process.pid)
    assert not (ws.masks / "manifest.json").exists()
    (first,) = ws.work.glob("*/layer_000.safetensors")
    before = first.stat().st_mtime_ns
    commands.run(ws)
    assert first.stat().st_mtime_ns == before
    assert digests(ws) == digests(finished)
    assert (ws.root / "dvc.lock").read_bytes() == (finished.root / "dvc.lock").read_bytes()


@pytest.mark.slow
def test_of_two_runs_at_once_one_works_and_the_other_says_so(
    commands: Commands, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    first = commands.start(ws, "dass", "run", "--json")
    try:
        wait_for(lambda: (ws.private / "lock").exists() and (ws.private / "lock").read_text() != "")
        refused = commands(ws, "dass", "run", status=2)
        told, errors = first.communicate(timeout=120)
    finally:
        _end_group(first.pid)
    assert f"held by another run (process {first.pid}, since" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert first.returncode == 0, errors
    assert json.loads(told)["created"]
    assert "up to date" in commands(ws, "dvc", "status").stdout


@pytest.mark.slow
def test_settings_edited_while_a_run_works_are_not_recorded(
    commands: Commands, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    process = commands.start(ws, "dass", "run")
    try:
        wait_for(lambda: process.poll() is not None or any(ws.work.glob("*/layer_000.safetensors")), seconds=120)
        set_value(ws, "alpha:", "0.75")
        _, errors = process.communicate(timeout=120)
    finally:
        _end_group(process.pid)
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith("dass: params.yaml (prune) changed while stage prune worked")
    assert "Traceback" not in errors
    assert "prune:" not in (ws.root / "dvc.lock").read_text()
    assert not ws.pruned.exists()


@pytest.mark.slow
def test_settings_edited_while_dvc_repro_works_are_not_recorded(commands: Commands, finished: Workspace) -> None:
    set_value(finished, "alpha:", "0.25")
    work = set(finished.work.glob("*/layer_000.safetensors"))
    lock = (finished.root / "dvc.lock").read_bytes()
    process = commands.start(finished, "dvc", "repro", "prune")
    try:
        wait_for(
            lambda: process.poll() is not None or bool(set(finished.work.glob("*/layer_000.safetensors")) - work),
            seconds=120,
        )
        set_value(finished, "alpha:", "0.75")
        _, errors = process.communicate(timeout=120)
    finally:
        _end_group(process.pid)
    assert process.returncode != 0
    assert "dass: params.yaml (prune) changed while stage prune worked" in errors
    assert (finished.root / "dvc.lock").read_bytes() == lock


def test_push_delete_and_pull_bring_everything_back(commands: Commands, finished: Workspace, tmp_path: Path) -> None:
    commands(finished, "dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    commands(finished, "dvc", "push")
    before = {path: path.read_bytes() for path in sorted(finished.root.glob("artifacts/**/*")) if path.is_file()}
    assert before
    for gone in (".dvc/cache", "artifacts", "plots"):
        shutil.rmtree(finished.root / gone)
    commands(finished, "dvc", "pull")
    assert {path: path.read_bytes() for path in before} == before
    assert "up to date" in commands(finished, "dvc", "status").stdout


def test_a_run_needs_no_server_and_leaves_no_process(commands: Commands, finished: Workspace) -> None:
    home = finished.private / "prefect"
    commands.make_database(home)
    some = ("--until", "calibration", "-S", "calibration.samples=8")
    process = commands.alone(home).start(finished, "dass", "run", *some)
    try:
        told, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        wait_for(lambda: not _group_lives(process.pid))
    finally:
        _end_group(process.pid)
    assert "Stopped behind calibration: nothing was registered" in told
    assert "Traceback" not in errors


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int) -> None:
    """Whatever is left of a run that was started in a group of its own."""
    if _group_lives(group):
        os.killpg(group, signal.SIGKILL)
