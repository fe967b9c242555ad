"""Many settings at once, in order: what `dass sweep` does."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.cancellation import cancel_when_interrupted, crash_lost
from flows.notices import tells_failure
from flows.run import Run, run_in
from flows.runners import elsewhere, worker_here
from flows.served import place_of, served
from flows.stages import wanted_stages
from flows.swept_before import PREPARED, made_from
from tasks.sweep.space import Point
from tasks.sweep.swept import Swept
from tasks.sweep.whole import WholeSweep
from tasks.sweep.workers import RefusedWorker, check_worker, threads_here, use_threads, wanted_of_worker
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
from tasks.workspace.settings import Sweep, validate_settings

if TYPE_CHECKING:
    from tasks.sweep.records import Record

# What may be skipped the records of finished points say, never Prefect; and values between tasks are small.
_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

logger = logging.getLogger("dass")


@flow(name="sweep", persist_result=False, on_crashed=[cancel_when_interrupted])
@tells_failure
@served
def sweep(workspace: str, changes: list[str]) -> Swept:
    """Prune and measure the workspace's model with many settings. Nothing is registered, params.yaml stays as it is.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc. A deployment works in a checkout of it.
        changes: `section.key=values`: what is swept over, and what all points have.
    """
    with place_of(workspace, changes) as ws, workspace_lock(ws), WholeSweep(ws, changes) as whole:
        crash_lost(ws)
        if whole.asked.address and not whole.asked.threads:
            logger.info(
                "sweep.threads is null: every worker computes with its own number of threads, on which a figure's last "
                "digits depend. sweep.threads=%d makes figures those of this machine.",
                threads_here(),
            )
        for points in whole.batches():
            for alike in whole.alike(points):
                work_on_alike(whole, ws, alike)
        return end(whole)


def work_on_alike(whole: WholeSweep, ws: Workspace, points: list[Point]) -> None:
    """Work on points that share base, calibration and dense evaluation."""
    with ExitStack() as until_done:
        try:
            run = until_done.enter_context(run_in(ws, points[0].changes, PREPARED, "dass sweep"))
            whole.prepared(points, made_from(run.started))
            prepare(run)
            for name, outcome in run.outcomes.items():
                if outcome == "ran":
                    whole.took(name, run.seconds[name])
        except Exception as error:  # the others go on, whatever it is
            whole.give_up(points, error)
            return
        left = whole.unfinished(run.ws, points)
        share_statistics(whole, run, left)
        for point, record in worked_on(run, left, whole.asked):
            whole.note(point, record)


@task(name="prepare base, calibration and dense evaluation", **_PLAIN)
def prepare(run: Run) -> None:
    for name in wanted_stages(PREPARED):
        run.stage(name)


@task(name="share statistics", **_PLAIN)
def share_statistics(whole: WholeSweep, run: Run, points: list[Point]) -> None:
    whole.share_statistics(run.ws, points)


def worked_on(run: Run, points: list[Point], asked: Sweep) -> "Iterator[tuple[Point, Record]]":
    """Points and what became of them, as they are finished. One that a worker refuses goes to the others."""
    from tasks.sweep.work import failed

    done: Queue[tuple[Point, Any]] = Queue()
    refused: set[str] = set()
    for point in points:
        submit(run, point, asked, refused, done)
    left = len(points)
    while left:
        point, future = done.get()
        try:
            record = future.result()
        except RefusedWorker as error:
            if error.worker not in refused:
                logger.warning(f"{error} Its points go to other workers.")
                refused.add(error.worker)
            if submit(run, point, asked, refused, done):
                continue
            record = failed("", error)
        except Exception as error:  # no worker could finish it
            record = failed("", error)
        left -= 1
        yield point, record


def submit(run: Run, point: Point, asked: Sweep, refused: set[str], done: "Queue[tuple[Point, Any]]") -> bool:
    """Hand a point to whoever works on it, and put it into `done` then; False: everybody is refused."""
    with elsewhere(asked, refused) as is_anybody_left:
        if is_anybody_left:
            task = work_on.with_options(task_run_name=f"point {point.number}")
            future = task.submit(asked_of(run.ws, point, asked))
            future.add_done_callback(lambda ended: done.put((point, ended)))
        return is_anybody_left


def asked_of(ws: Workspace, point: Point, asked: Sweep) -> dict[str, str]:
    """A point for whoever works on it: text, which every scheduler carries as it is."""
    settings = point.settings.model_dump_json(by_alias=True)
    places = {"root": ws.root, "once": ws.once or "", "keeper": ws.keeper or ""}
    told = {**{name: str(path) for name, path in places.items()}, "settings": settings, "runner": asked.runner}
    if asked.runner == "threads":
        return told
    threads = asked.threads or (None if asked.address else threads_here())
    return {**told, **({"threads": str(threads)} if threads else {}), "wanted": wanted_of_worker(ws, point.settings)}


@task(name="point", **_PLAIN)
def work_on(asked: dict[str, str]) -> "Record":
    from tasks.sweep import work

    once, keeper = (Path(asked[name]) if asked[name] else None for name in ("once", "keeper"))
    ws = Workspace(Path(asked["root"]), once, keeper=keeper)
    settings = validate_settings(json.loads(asked["settings"]), "the point's settings")
    if "wanted" in asked:
        try:
            check_worker(ws, settings, asked["wanted"])
        except RefusedWorker as error:
            error.worker = worker_here(asked["runner"])
            raise
    if "threads" in asked:
        use_threads(int(asked["threads"]))
    return work.work_on(ws, settings)


@task(name="compare", **_PLAIN)
def end(whole: WholeSweep) -> Swept:
    return whole.end()
