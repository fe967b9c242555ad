"""`dass sweep` on a tiny model: equal to runs one by one, shared work, and what a kill or a second sweep does to it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dass.errors import InputError
from dass.files import read_json
from flows.cli.main import run_command
from flows.sweep import asked_of, sweep
from tasks.registry.tracking import tracking
from tasks.sweep.space import Point
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import take_lease
from tasks.workspace.lock import sweep_file
from tasks.workspace.settings import Sweep, load_settings
from tests.servers import free_port
from tests.test_flows.conftest import ROOT, Commands, typed
from tests.test_flows.test_compress import wait_for
from tests.test_flows.test_serve import committed, of_the_person

GRID = ("-S", "prune.sparsity=0.3,0.5", "-S", "prune.method=dass,wanda,sparsegpt", "-S", "prune.propagation=dense")
EACH_ONCE = ["1", "2", "3", "4", "5", "6", "parent"]


def swept(commands: Commands, ws: Workspace, *options: str, status: int = 0) -> tuple[dict[str, Any], str]:
    done = commands(ws, "dass", "sweep", "--json", *options, status=status)
    return json.loads(done.stdout), done.stderr


def all_runs(ws: Workspace) -> list[Any]:
    with tracking(ws) as client:
        return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def runs_of(ws: Workspace, sweep: str) -> list[Any]:
    return [run for run in all_runs(ws) if run.data.tags.get("sweep") == sweep]


def parent_of(ws: Workspace, sweep: str) -> tuple[str, str | None]:
    """Status of the run above the points', and why it ended badly."""
    (run,) = [run for run in runs_of(ws, sweep) if run.data.tags["sweep.point"] == "parent"]
    return run.info.status, run.data.tags.get("ended")


def again_without_heavy_libraries(commands: Commands, ws: Workspace, *options: str) -> dict[str, Any]:
    """What a finished sweep answers, where Prefect, torch and MLflow cannot be imported."""
    code = (
        "import json, sys; sys.modules |= dict.fromkeys(('torch', 'prefect', 'mlflow', 'transformers', 'dask'))\n"
        "from flows.cli.main import run_command; sys.exit(run_command(json.loads(sys.argv[1])))"
    )
    arguments = ["sweep", "--json", *(part for option in options for part in ("-S", option))]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=ws.root,
        env={**commands.environment, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def points_of(ws: Workspace, sweep: str) -> list[str]:
    return sorted(run.data.tags["sweep.point"] for run in runs_of(ws, sweep))


def results(answer: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    return [(point["masks"], point["figures"]) for point in answer["points"]]


def figure(evaluation: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        evaluation = evaluation[part]
    return evaluation


def check_same(point: dict[str, Any], ws: Workspace) -> None:
    """A point is what the run is that the workspace holds."""
    manifest = read_json(ws.masks / "manifest.json")
    assert (manifest["fingerprint"], manifest["masks"]["digest"]) == (point["fingerprint"], point["masks"])
    evaluation = read_json(ws.metrics / "evaluation.json")
    for name in ("ratio", "pruned.perplexity", "divergence.kl", "sparsity.mlp", "zeros.pruned_mlp"):
        assert point["figures"][name] == figure(evaluation, name), name


def test_a_point_is_what_a_run_is_and_one_that_fails_does_not_stop_the_others(
    commands: Commands, finished: Workspace
) -> None:
    grid = ("-S", "prune.alpha=0,0.5", "-S", "calibration.samples=300,1000000")
    with commands.reporting():
        answered, told = typed(finished, "sweep", "--json", *grid)
    answer = json.loads(answered)
    first, second, third, fourth = answer["points"]
    assert (first["failed"], third["failed"]) == (None, None)
    assert second["failed"] == fourth["failed"]
    check_same(third, finished)
    assert "point 2" in told
    assert {run.info.status for run in runs_of(finished, answer["sweep"])} == {"FINISHED", "FAILED"}
    assert parent_of(finished, answer["sweep"]) == ("FINISHED", None)

    assert again_without_heavy_libraries(
        commands, finished, "prune.alpha=0,0.5", "calibration.samples=300,1000000"
    ) == {
        **answer,
        "found": 4,
    }


def test_a_sweep_of_a_deployment_works_in_the_checkout_and_its_points_are_the_workspaces(
    commands: Commands, finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(finished)
    finished.params.write_text(finished.params.read_text() + "# not committed\n")
    before, asked = of_the_person(finished), "prune.alpha=0,0.5"
    with monkeypatch.context() as served, commands.reporting():
        served.setenv("DASS_SERVED_WORKSPACE", str(finished.root))
        served.setenv("DASS_SERVED_REVISION", "HEAD")
        other = take_lease(sweep_file(finished), "another sweep")
        held = rf"Sweeping {finished.root} is held by another run \(process {os.getpid()}"
        with pytest.raises(InputError, match=held):
            sweep(str(finished.root), [asked])
        other.release()
        made = sweep(str(finished.root), [asked])
    assert (len(made.done), made.failed) == (2, [])
    assert of_the_person(finished) == before
    there = Workspace(finished.private / "checkout", keeper=finished.root)
    assert (there.base / "config.json").is_file()
    assert not (there.private / "sweeps").exists()
    assert list((finished.private / "flow-runs").iterdir()) == []
    answer = again_without_heavy_libraries(commands, finished, asked)
    assert (answer["found"], answer["mlflow_run"]) == (2, made.mlflow_run)


@pytest.mark.slow
def test_a_grid_gives_what_runs_give_from_one_pass_and_a_second_time_computes_nothing(
    commands: Commands, finished: Workspace
) -> None:
    answer, told = swept(commands, finished, *GRID)
    assert "6 points share 1 passes through the dense model" in told
    points = answer["points"]
    assert [point["failed"] for point in points] == [None] * 6
    assert len({point["masks"] for point in points}) == 6
    assert answer["found"] == 0
    assert answer["shared_seconds"].keys() == {"statistics"}
    runs = runs_of(finished, answer["sweep"])
    assert len(runs) == 7
    with tracking(finished) as client:
        for run in runs:
            if run.data.tags["sweep.point"] != "parent":
                assert run.data.tags["mlflow.parentRunId"] == answer["mlflow_run"]
                files = {file.path for file in client.list_artifacts(run.info.run_id, "masks")}
                assert {"masks/masks.safetensors", "masks/manifest.json"} <= files

    again, told = swept(commands, finished, *GRID)
    assert again["found"] == 6
    assert again["points"] == points
    assert again["mlflow_run"] == answer["mlflow_run"]
    assert told == ""
    (finished.sweeps / answer["sweep"] / "sweep.json").unlink()  # as if it had been killed just before the end
    once_more, told = swept(commands, finished, *GRID)
    assert once_more == {**again, "shared_seconds": {}}
    assert "share" not in told
    assert {run.info.run_id for run in runs_of(finished, answer["sweep"])} == {run.info.run_id for run in runs}

    for point in (points[1], points[5]):  # wanda at 0.3, sparsegpt at 0.5: the latter changes kept weights
        commands.run(finished, "--from-sweep", answer["sweep"], str(point["number"]), "--until", "plots")
        check_same(point, finished)


@pytest.mark.slow
def test_a_sweep_that_was_killed_repeats_no_finished_point(commands: Commands, finished: Workspace) -> None:
    kept = finished.sweeps / "points"
    begun = commands.start(finished, "dass", "sweep", *GRID)
    wait_for(lambda: len(list(kept.glob("*.json"))) >= 2, 240.0)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert 2 <= len(before) < 6
    (name,) = {run.data.tags["sweep"] for run in all_runs(finished) if "sweep" in run.data.tags}
    assert parent_of(finished, name) == ("RUNNING", None)
    answer, _ = swept(commands, finished, *GRID)
    assert answer["found"] == len(before)
    assert [point["failed"] for point in answer["points"]] == [None] * 6
    after = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert {name: after[name] for name in before} == before
    assert points_of(finished, answer["sweep"]) == EACH_ONCE
    assert (answer["sweep"], parent_of(finished, name)) == (name, ("FINISHED", None))


@pytest.mark.slow
def test_an_interrupted_sweep_says_so_in_mlflow_and_goes_on_in_the_same_run(
    commands: Commands, finished: Workspace
) -> None:
    begun = commands.start(finished, "dass", "sweep", *GRID)
    wait_for(lambda: len(list((finished.sweeps / "points").glob("*.json"))) >= 2, 240.0)
    begun.send_signal(signal.SIGINT)
    begun.communicate(timeout=60)
    assert begun.returncode == 130
    (parent,) = [run for run in all_runs(finished) if run.data.tags.get("sweep.point") == "parent"]
    assert parent.info.status == "KILLED"
    assert parent.data.tags["ended"].startswith("interrupted; ")
    answer, _ = swept(commands, finished, *GRID)
    assert answer["mlflow_run"] == parent.info.run_id
    assert answer["found"] >= 2
    assert parent_of(finished, answer["sweep"]) == ("FINISHED", None)
    assert points_of(finished, answer["sweep"]) == EACH_ONCE


def check_it_gave_what_threads_give(commands: Commands, ws: Workspace, answer: dict[str, Any]) -> None:
    assert [point["failed"] for point in answer["points"]] == [None] * 6
    assert points_of(ws, answer["sweep"]) == EACH_ONCE
    shutil.rmtree(ws.sweeps)
    alone, _ = swept(commands, ws, *GRID)
    assert results(answer) == results(alone)


@pytest.mark.slow
def test_dask_gives_what_threads_give_when_a_worker_is_killed(commands: Commands, finished: Workspace) -> None:
    dask_is_in = Path(pytest.importorskip("prefect_dask").__file__).parents[1]
    kept = finished.sweeps / "points"
    asked = (*GRID, "-S", "sweep.runner=dask", "-S", "sweep.parallel=2")
    path = f"{ROOT}{os.pathsep}{dask_is_in}"
    begun = commands.start(finished, "dass", "sweep", "--json", *asked, PYTHONPATH=path)
    wait_for(lambda: len(list(kept.glob("*.json"))) >= 1, 240.0)
    workers = [
        child
        for child in psutil.Process(begun.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline()) and not child.children()
    ]
    workers[0].send_signal(signal.SIGKILL)
    out, err = begun.communicate(timeout=240)
    assert begun.returncode == 0, err
    answer = json.loads(out)
    check_it_gave_what_threads_give(commands, finished, answer)


@pytest.mark.slow
def test_ray_gives_what_threads_give(commands: Commands, finished: Workspace) -> None:
    ray_is_in = Path(pytest.importorskip("prefect_ray", reason="pip install 'dass[ray]'").__file__).parents[1]
    asked = (*GRID, "-S", "sweep.runner=ray", "-S", "sweep.parallel=2", "-S", "sweep.resources={slot: 1}")
    path = f"{ROOT}{os.pathsep}{ray_is_in}"
    done = commands(finished, "dass", "sweep", "--json", *asked, PYTHONPATH=path)
    answer = json.loads(done.stdout)
    check_it_gave_what_threads_give(commands, finished, answer)


@pytest.mark.slow
def test_points_of_a_refused_worker_go_elsewhere_and_fail_where_nobody_else_is(
    commands: Commands, finished: Workspace, tmp_path: Path
) -> None:
    pytest.importorskip("prefect_dask", reason="pip install 'dass[dask]'")
    other = tmp_path / "other"
    for floor in ("dass", "tasks", "flows"):
        shutil.copytree(ROOT / floor, other / floor, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "tasks" / "plots.py").open("a", encoding="utf-8") as file:
        file.write("# not as it is here\n")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    here = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    started = [commands.start(finished, "dask", "scheduler", *here)]
    asked = ("-S", f"sweep.address={address}", "-S", "sweep.runner=dask")
    try:
        started.append(worker(commands, finished, address, PYTHONPATH=str(other)))
        wait_for(lambda: workers_at(address) == 1, 60.0)
        answer, told = swept(commands, finished, *GRID, *asked, status=1)
        assert len(answer["points"]) == 6
        assert all(" has code " in point["failed"] for point in answer["points"])
        assert parent_of(finished, answer["sweep"])[0] == "FAILED"

        started.append(worker(commands, finished, address, PYTHONPATH=str(ROOT)))
        wait_for(lambda: workers_at(address) == 2, 60.0)
        answer, told = swept(commands, finished, *GRID, *asked)
        assert told.count("Its points go to other workers.") == 1
        assert [point["failed"] for point in answer["points"]] == [None] * 6
        assert "sweep.threads is null: every worker computes with its own number of threads" in told
        assert parent_of(finished, answer["sweep"]) == ("FINISHED", None)
        assert points_of(finished, answer["sweep"]) == EACH_ONCE
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def worker(commands: Commands, ws: Workspace, address: str, **env: str) -> "subprocess.Popen[str]":
    return commands.start(ws, "dask", "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", **env)


def workers_at(address: str) -> int:
    from flows.dask_cluster import _workers_at

    with suppress(OSError):
        return asyncio.run(_workers_at(address))
    return 0


@pytest.mark.parametrize(
    ("asked", "threads"),
    [
        ({}, None),
        ({"runner": "dask"}, torch.get_num_threads()),
        ({"runner": "ray", "threads": 3}, 3),
        ({"runner": "dask", "address": "tcp://127.0.0.1:1"}, None),
        ({"runner": "dask", "address": "tcp://127.0.0.1:1", "threads": 3}, 3),
    ],
)
def test_whoever_works_on_a_point_is_told_how_many_threads(
    asked: dict[str, Any], threads: int | None, finished: Workspace
) -> None:
    settings = load_settings(finished.params)
    told = asked_of(finished, Point(1, {}, (), settings), Sweep(**asked))
    assert told.get("threads") == (None if threads is None else str(threads))


BAD = [
    (["prune.sparsites=0.3,0.5"], "prune.sparsites: unknown key"),
    (["prune.sparsity=[]"], "the list is empty"),
    (["prune.sparsity=0.3,1.5"], "point 2 (prune.sparsity=1.5)"),
    (["prune.pattern=2:4,7:9", "prune.sparsity=null"], "point 2 (prune.pattern=7:9)"),
    (["prune.alpha=0,1", "sweep.max_points=1"], "The sweep has 2 points: sweep.max_points is 1"),
    (["prune.alpha=1"], "nothing to sweep over"),
    (["register.model=a,b"], "sweep over register.model"),
    (["prune.sparsity=0.3,,0.5"], "a value between the commas is empty"),
    (["prune.sparsity={low: 0.3, high: 0.5}"], "a grid takes a list"),
    (["sweep.over={prune.alpha: 1}"], "sweep.over.prune.alpha"),
    (["prune.alpha=0,1", "sweep.address=tcp://127.0.0.1:1"], "sweep.address is set and sweep.runner is threads"),
    (["prune.alpha=0,1", "sweep.threads=2"], "sweep.threads is set and sweep.runner is threads"),
    (["prune.alpha=0,1", "sweep.runner=dask", "sweep.threads=0"], "sweep.threads"),
]


def test_bad_input_is_one_line_before_any_work(
    new_workspace: Callable[[], Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    ws = new_workspace()
    for options, told in BAD:
        arguments = [part for option in options for part in ("-S", option)]
        assert run_command(["sweep", "-w", str(ws.root), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert not ws.sweeps.exists()
