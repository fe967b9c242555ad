"""Many settings at once, in order: what `dass sweep` does."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from flows.cancellation import cancel_when_interrupted
from flows.run import Run, run_of
from flows.runners import set_aside
from flows.stages import wanted_stages
from tasks.sweep.space import Point
from tasks.sweep.whole import Swept, WholeSweep
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
from tasks.workspace.settings import Sweep, validate_settings

if TYPE_CHECKING:
    from tasks.sweep.records import Record

# What may be skipped the records of finished points say, never Prefect; and values between tasks are small.
_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
_PREPARED = "baseline"
"""The stage behind which points part."""


@flow(name="sweep", persist_result=False, on_crashed=[cancel_when_interrupted])
def sweep(workspace: str, changes: list[str]) -> Swept:
    """Prune and measure the workspace's model with many settings. Nothing is registered, params.yaml stays as it is.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc.
        changes: `section.key=values`: what is swept over, and what all points have.
    """
    ws = Workspace.at(workspace)
    with workspace_lock(ws):
        whole = WholeSweep(ws, changes)
        for points in whole.batches():
            for alike in whole.alike(points):
                with ExitStack() as until_done:
                    try:
                        run = until_done.enter_context(run_of(workspace, alike[0].changes, _PREPARED))
                        prepare(run)
                    except Exception as error:  # the others go on, whatever it is
                        whole.give_up(alike, error)
                        continue
                    left = whole.unfinished(run.ws, alike)
                    share_statistics(whole, run, left)
                    for point, record in worked_on(run, left, whole.asked):
                        whole.note(point, record)
        return end(whole)


@task(name="prepare base, calibration and dense evaluation", **_PLAIN)
def prepare(run: Run) -> None:
    for name in wanted_stages(_PREPARED):
        run.stage(name)


@task(name="share statistics", **_PLAIN)
def share_statistics(whole: WholeSweep, run: Run, points: list[Point]) -> None:
    whole.share_statistics(run.ws, points)


def worked_on(run: Run, points: list[Point], asked: Sweep) -> "Iterator[tuple[Point, Record]]":
    """Points and what became of them, as they are finished."""
    from tasks.sweep.work import code_here, failed

    code = code_here()
    with set_aside(asked):
        futures: dict[Any, Point] = {
            work_on.with_options(task_run_name=f"point {point.number}").submit(asked_of(run.ws, point), code): point
            for point in points
        }
    for future in as_completed(list(futures)):
        try:
            record = future.result()
        except Exception as error:  # no worker could finish it
            record = failed("", error)
        yield futures[future], record


def asked_of(ws: Workspace, point: Point) -> dict[str, str]:
    """A point for whoever works on it: text, which every scheduler carries as it is."""
    settings = point.settings.model_dump_json(by_alias=True)
    return {"root": str(ws.root), "once": str(ws.once or ""), "settings": settings}


@task(name="point", **_PLAIN)
def work_on(asked: dict[str, str], code: dict[str, str]) -> "Record":
    from tasks.sweep import work

    work.check_code(code)
    ws = Workspace(Path(asked["root"]), Path(asked["once"]) if asked["once"] else None)
    return work.work_on(ws, validate_settings(json.loads(asked["settings"]), "the point's settings"))


@task(name="compare", **_PLAIN)
def end(whole: WholeSweep) -> Swept:
    return whole.end()
