"""The whole method, in order: what `dass run` does, what a schedule starts, what Prefect's UI shows."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from flows.cancellation import cancel_when_interrupted, crash_lost
from flows.links import flow_run_facts, link_to_mlflow, log_of
from flows.notices import tell_lost, tells_failure
from flows.progress import log_layer, progress_artifact
from flows.retries import AGAIN
from flows.run import Run, run_of
from flows.served import served
from flows.shown import name_flow_run, show_result, tag_version
from flows.stages import StageName, wanted_stages
from flows.summary import Stopped, Summary
from tasks.evaluation.task_check import check_tokenizer
from tasks.pruning.fits import check_base_fits
from tasks.registry.registration import Registration
from tasks.workspace.lock import check_held
from tasks.workspace.log_format import log_attributes

if TYPE_CHECKING:
    from dass.engine.choice import Choice
    from dass.engine.run import LayerRecord
    from tasks.pruning.run import PruningRun

# What may be skipped is DVC's decision, never Prefect's; and values between tasks are small.
_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


BEHIND: dict[str, tuple[str, ...]] = {
    "sources": (),
    "calibration": ("sources",),
    "baseline": ("sources",),
    "prune": ("calibration",),
    "recover": ("prune",),
    "materialize": ("recover",),
    "evaluate": ("baseline", "materialize"),
    "tasks": ("materialize",),
    "plots": ("evaluate", "tasks"),
}
"""Stage -> the stages that Prefect draws it behind: those whose outputs it reads, but for what stands behind those."""


class Done:
    """What a task answers that leaves files: Prefect knows it again where another task waits for it.

    No dataclass and no name: Prefect looks into those, and would know a part of them again instead.
    """


@flow(name="compress", persist_result=False, on_crashed=[cancel_when_interrupted])
@tells_failure
@served
def compress(workspace: str, changes: list[str] | None = None, until: StageName | None = None) -> Summary | Stopped:
    """Prune the workspace's model, measure what that cost, and register the result.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc. A schedule takes none but its own.
        changes: `section.key=value`, for this run only: params.yaml stays as it is. A schedule takes none.
        until: the stage to stop behind; None: all of them, and the result is registered.
    """
    with run_of(workspace, changes or (), until) as run, log_of(run.settings.register_.model):
        crash_lost(run.ws)
        tell_lost(run.ws, run.settings.register_.model, run.settings.notify)
        name_flow_run(run.settings)
        done: dict[str, object] = {}
        for name in wanted_stages(until):
            done[name] = _STAGE[name](run, wait_for=[done[before] for before in BEHIND[name]])
        if until is not None:
            return run.stopped()
        if run.remotes:
            done["push"] = push_data(run, wait_for=list(done.values()))
        registered = register(run, wait_for=list(done.values()))
        with log_attributes({"version": registered.version, "mlflow.run.id": registered.run_id}):
            report(run, registered)
            return run.summary(registered)


@task(name="fetch", **_PLAIN, **AGAIN)
def fetch(run: Run) -> Done:
    run.stage("sources")
    check_base_fits(run.ws, run.settings)
    check_tokenizer(run.ws, run.settings)
    return Done()


@task(name="calibrate", **_PLAIN)
def calibrate(run: Run) -> Done:
    run.stage("calibration")
    return Done()


@task(name="measure dense", **_PLAIN)
def measure_dense(run: Run) -> Done:
    run.stage("baseline")
    return Done()


def prune(run: Run, wait_for: list[object]) -> list[object]:
    """The prune stage: one Prefect task per decoder layer; with `method: auto` one before them that chooses."""
    last = wait_for  # what the next task is behind
    show: Callable[[int, dict[str, Any]], None] | None = None

    def choose(pruning_run: "PruningRun") -> "Choice | None":
        nonlocal last
        chosen: Choice | None = choose_scores(quote(pruning_run), wait_for=last)
        last = [chosen] if chosen is not None else last
        return chosen

    def prune_one(pruning_run: "PruningRun", index: int) -> "LayerRecord":
        nonlocal last, show
        check_held(run.ws)
        total = pruning_run.layer_count
        name = f"prune layer {index + 1:02d} of {total}"
        with log_attributes({"layer": index}):
            record: LayerRecord = prune_layer.with_options(name=name, task_run_name=name)(
                quote(pruning_run), index, wait_for=last
            )
        last = [record]
        run.live.note_layer(record.report)
        log_layer(index, total, record.report)
        show = show or progress_artifact(total, "prune", "layer")
        show(index + 1, {"relative_error": record.report.relative_error})
        return record

    def work() -> None:
        from tasks.pruning.stages import prune  # here, because a run that skips this stage needs no torch

        run.live.begin(flow_run_facts())
        prune(run.ws, run.settings, do_layer=prune_one, choose=choose)

    run.stage("prune", work)
    return last


@task(name="choose scores", **_PLAIN)
def choose_scores(pruning_run: Any) -> "Choice | None":  # Any: as `prune_layer`
    chosen: Choice | None = pruning_run.choose()
    return chosen


@task(**_PLAIN)
def prune_layer(pruning_run: Any, index: int) -> "LayerRecord":  # Any: it arrives quoted, and is unquoted on the way
    record: LayerRecord = pruning_run.layer(index)
    report = record.report
    shares = ", ".join(f"{projection} {share:.4f}" for projection, share in report.sparsity.items())
    how = "finished by an earlier run" if record.resumed else f"{report.seconds:.1f} s"
    told = [f"by {report.score}", f"sparsity {shares}"]
    if report.relative_error is not None:
        told.append(f"relative output error {report.relative_error:.4g}")
    if report.fitted_error is not None:
        told.append(f"error of the re-fit {report.fitted_error:.4g} on what it was fitted to")
    if report.held_back_error is not None:
        told.append(f"{report.held_back_error:.4g} on what was held back")
    if report.refit_damping is not None:
        chosen = (f"{name} {'none' if of is None else f'{of:g}'}" for name, of in report.refit_damping.items())
        told.append(f"its damping {', '.join(chosen)}")
    if report.damping is not None:
        told.append(f"damping {report.damping:g}")
    if report.refined:
        swaps = sum(each["swaps"] for each in report.refined.values())
        left = ", ".join(
            f"{name} {each['error_after'] / each['error_before'] if each['error_before'] else 1.0:.3f}"
            for name, each in report.refined.items()
        )
        told.append(f"{swaps:,.0f} swaps left of the squared error {left}")
    if report.starved_experts:
        told.append(f"judged on all tokens, for want of routed ones: {', '.join(report.starved_experts)}")
    get_run_logger().info("layer %d: %s; %s", index, "; ".join(told), how)
    return record


@task(name="recover", **_PLAIN)
def recover(run: Run) -> Done:
    """The recover stage: its steps as the task's progress."""

    def work() -> None:
        from tasks.recovery.stages import recover

        run.live.begin(flow_run_facts())
        show = progress_artifact(run.settings.recover.steps, "recover", "step")

        def on_step(entry: dict[str, Any]) -> None:
            check_held(run.ws)
            run.live.note_step(entry)
            show(entry["step"], entry)

        recover(run.ws, run.settings, on_step=on_step)

    run.stage("recover", work)
    return Done()


@task(name="materialize", **_PLAIN)
def materialize(run: Run) -> Done:
    run.stage("materialize")
    return Done()


@task(name="measure pruned", **_PLAIN)
def measure_pruned(run: Run) -> Done:
    run.stage("evaluate")
    return Done()


@task(name="ask tasks", **_PLAIN)
def ask_tasks(run: Run) -> Done:
    run.stage("tasks")
    return Done()


@task(name="draw", **_PLAIN)
def draw(run: Run) -> Done:
    run.stage("plots")
    return Done()


# In the order of dvc.yaml.
_STAGE: dict[str, Callable[..., object]] = {
    "sources": fetch,
    "calibration": calibrate,
    "baseline": measure_dense,
    "prune": prune,
    "recover": recover,
    "materialize": materialize,
    "evaluate": measure_pruned,
    "tasks": ask_tasks,
    "plots": draw,
}


@task(name="push data", **_PLAIN, **AGAIN)
def push_data(run: Run) -> Done:
    run.push()
    return Done()


@task(name="register", **_PLAIN, **AGAIN)
def register(run: Run) -> Registration:
    return run.register(flow_run_facts())


@task(name="draw the report", **_PLAIN)
def report(run: Run, registered: Registration) -> None:
    run.report(registered)
    tag_version(registered.version)
    link_to_mlflow(registered)
    show_result(run.ws, registered)
