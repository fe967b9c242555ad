"""The whole method, in order: what `dass run` does, what a schedule starts, what Prefect's UI shows."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from dass.files import read_json
from flows.cancellation import cancel_when_interrupted
from flows.checks import check_start
from flows.served import obey_schedule
from flows.stages import STAGES
from flows.summary import Summary
from tasks.pruning.fits import check_base_fits
from tasks.registry import registration
from tasks.versioning.experiments import save_experiment
from tasks.versioning.provenance import provenance
from tasks.versioning.stages import Started, run_if_changed, start_run
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import clear_workspace, workspace_lock
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from dass.engine.run import LayerRecord
    from tasks.pruning.run import PruningRun

logger = logging.getLogger("dass")

# What may be skipped is DVC's decision, never Prefect's; and values between tasks are small.
_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@flow(name="compress", persist_result=False, on_crashed=[cancel_when_interrupted])
def compress(workspace: str) -> Summary:
    """Prune the workspace's model, measure what that cost, and register the result.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc. A schedule takes none but its own.
    """
    with run_of(workspace) as run:
        fetch(run)
        calibrate(run)
        measure_dense(run)
        prune(run)
        materialize(run)
        measure_pruned(run)
        draw(run)
        registered = register(run)
        return summarize(run, registered)


class Run:
    """One run of the flow: the settings it started with, and what became of each stage.

    Not a dataclass: Prefect looks into those that a task is given, and copies them.
    """

    def __init__(self, ws: Workspace, started: Started) -> None:
        self.ws = ws
        self.started = started
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    @property
    def settings(self) -> Settings:
        return self.started.settings

    def stage(self, name: str, work: Callable[[], object] | None = None) -> None:
        """Do a stage, unless DVC has its result."""
        begin = time.perf_counter()
        stage = STAGES[name]
        outcome = run_if_changed(self.ws, name, work or (lambda: stage.work(self.ws, self.settings)), self.started)
        self.outcomes[name] = outcome
        self.seconds[name] = round(time.perf_counter() - begin, 3)
        logger.info("%s: %s", name, f"done in {self.seconds[name]:.1f} s" if outcome == "ran" else outcome)


@contextmanager
def run_of(workspace: str) -> Iterator[Run]:
    """Hold the workspace and read everything once; what can be refused is refused here, before any work."""
    obey_schedule(workspace)
    ws = Workspace.at(workspace)
    with workspace_lock(ws):
        clear_workspace(ws)
        started = start_run(ws)
        check_start(ws, started.settings)
        yield Run(ws, started)


@task(name="fetch", **_PLAIN)
def fetch(run: Run) -> None:
    run.stage("sources")
    check_base_fits(run.ws, run.settings)


@task(name="calibrate", **_PLAIN)
def calibrate(run: Run) -> None:
    run.stage("calibration")


@task(name="measure dense", **_PLAIN)
def measure_dense(run: Run) -> None:
    run.stage("baseline")


def prune(run: Run) -> None:
    """The prune stage: one Prefect task per decoder layer."""

    def work() -> None:
        from tasks.pruning.stages import prune  # here, because a run that skips this stage needs no torch

        prune(run.ws, run.settings, do_layer=_prune_layer)

    run.stage("prune", work)


def _prune_layer(pruning_run: "PruningRun", index: int) -> "LayerRecord":
    name = f"prune layer {index + 1:02d} of {pruning_run.layer_count}"
    return prune_layer.with_options(name=name, task_run_name=name)(quote(pruning_run), index)


@task(**_PLAIN)
def prune_layer(pruning_run: Any, index: int) -> "LayerRecord":  # Any: it arrives quoted, and is unquoted on the way
    record: LayerRecord = pruning_run.layer(index)
    report = record.report
    shares = ", ".join(f"{projection} {share:.4f}" for projection, share in report.sparsity.items())
    how = "finished by an earlier run" if record.resumed else f"{report.seconds:.1f} s"
    told = [f"sparsity {shares}"]
    if report.relative_error is not None:
        told.append(f"relative output error {report.relative_error:.4g}")
    if report.damping is not None:
        told.append(f"damping {report.damping:g}")
    if report.starved_experts:
        told.append(f"judged on all tokens, for want of routed ones: {', '.join(report.starved_experts)}")
    get_run_logger().info("layer %d: %s; %s", index, "; ".join(told), how)
    return record


@task(name="materialize", **_PLAIN)
def materialize(run: Run) -> None:
    run.stage("materialize")


@task(name="measure pruned", **_PLAIN)
def measure_pruned(run: Run) -> None:
    run.stage("evaluate")


@task(name="draw", **_PLAIN)
def draw(run: Run) -> None:
    run.stage("report")


@task(name="register", **_PLAIN)
def register(run: Run) -> registration.Registration:
    origin = provenance(run.ws, run.seconds)
    if run.settings.register_.save_experiment:
        name = registration.experiment_name(run.ws, run.settings)
        origin["experiment"] = {"name": name, "commit": save_experiment(run.ws, name)}
    return registration.register(run.ws, run.settings, origin)


def summarize(run: Run, registered: registration.Registration) -> Summary:
    """What the person sees at the end."""
    return Summary.of(read_json(run.ws.metrics / "evaluation.json"), registered, run.outcomes, run.seconds)
