"""A run that a schedule started: it works in the schedule's workspace only, and ends when the schedule does."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from typing import ParamSpec, TypeVar

from dass.errors import InputError
from flows.timetable import Timetable
from tasks.workspace.folder import Workspace
from tasks.workspace.gpus import WAIT
from tasks.workspace.lease import take_lease
from tasks.workspace.lock import flow_run_file
from tasks.workspace.tied import end_with

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("dass")

_SCHEDULER = "DASS_SERVED_BY"
_WORKSPACE = "DASS_SERVED_WORKSPACE"  # prefect.yaml sets it, too
_CHANGES = "DASS_SERVED_CHANGES"  # JSON; without it a run may be given any
_JITTER = "DASS_SERVED_JITTER"
_REVISION = "DASS_SERVED_REVISION"
_GPU_SECONDS = "21600"  # prefect.yaml has them, too


def schedule_here(ws: Workspace, changes: Sequence[str], timetable: Timetable, revision: str | None) -> None:
    """From now on the runs that this process starts take no other workspace or settings, and end with it.

    Args:
        ws, changes, timetable: of the schedule.
        revision: what its runs check out; None: they work in the workspace itself.
    """
    os.environ[_SCHEDULER] = str(os.getpid())
    os.environ[_WORKSPACE] = str(ws.root)
    os.environ[_CHANGES] = json.dumps(list(changes))
    os.environ[_JITTER] = str(timetable.jitter)
    os.environ[_REVISION] = revision or ""
    os.environ.setdefault(WAIT, _GPU_SECONDS)  # nobody is there to try again


def obey_schedule(workspace: str, changes: Sequence[str] = ()) -> None:
    """In a run that a schedule started, before all else: end when the schedule's process does, even by kill -9, and
    wait for the run's own share of the schedule's jitter.

    Args:
        workspace, changes: the run's parameters, which whoever speaks to Prefect's API may set.

    Raises:
        InputError: the workspace is not spelled as the schedule's own, or its settings are to be changed.
    """
    starter = os.environ.get(_SCHEDULER)
    if starter and int(starter) != os.getpid():
        end_with(int(starter))
    check_served(workspace)
    asked = os.environ.get(_CHANGES)
    if asked and list(changes) != _listed(asked):
        raise InputError(f"changes is {list(changes)}: this schedule works with {asked} only. Leave it as it was.")
    _wait_for_the_others(workspace)


def _listed(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise InputError(f"{_CHANGES} is {text!r}: expected a JSON list of section.key=value.")
    return value


def check_served(workspace: str) -> None:
    """Refuse, in a run that a schedule or a work pool's deployment started, another workspace than its own.

    Raises:
        InputError: it is not spelled as that.
    """
    served = os.environ.get(_WORKSPACE)
    if served and workspace != served:
        raise InputError(f'workspace is "{workspace}": this schedule works in "{served}" only. Leave it as it was.')


def served(work: Callable[P, T]) -> Callable[P, T]:
    """The body of a flow that a deployment may start: it takes no other workspace than its own, and while it works its
    process holds a lease of the flow run, by which others see whether it lives. Its first parameter is the workspace.

    Raises:
        InputError: another workspace.
    """

    @wraps(work)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        workspace = str(args[0] if args else kwargs["workspace"])
        check_served(workspace)
        with _leased(Workspace.at(workspace)):
            return work(*args, **kwargs)

    return kept


@contextmanager
def _leased(ws: Workspace) -> Iterator[None]:
    """Hold this flow run's lease, if a deployment started it, and free the slots of runs that lost theirs."""
    from prefect.runtime import flow_run

    if not is_served() or flow_run.id is None:
        yield
        return
    from flows.slots import free_slots

    path = flow_run_file(ws, str(flow_run.id))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = take_lease(path, f"Flow run {flow_run.name}")
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): should this run and its worker be killed, its slot stays taken until somebody "
            "ends the run on Prefect's page",
            path,
            error.strerror,
        )
        yield
        return
    try:
        lease.note(flow=str(flow_run.flow_name), run=str(flow_run.name), count=str(flow_run.run_count))
        free_slots(ws)
        yield
    finally:
        path.unlink(missing_ok=True)
        lease.release()


def is_served() -> bool:
    """Whether nobody sits before this run: a schedule or a work pool started it."""
    return bool(os.environ.get(_WORKSPACE))


def _wait_for_the_others(workspace: str) -> None:
    """Runs of many schedules that are due in the same minute do not start in the same second. One that a person
    started at once waits for nobody."""
    text = os.environ.get(_JITTER) or "0"
    if not text.isdecimal():
        raise InputError(f"{_JITTER} is {text!r}: expected whole seconds.")
    jitter = int(text)
    if not jitter:
        return
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or not run.auto_scheduled or run.expected_start_time is None:
        return
    due = run.expected_start_time
    delay = Timetable("", jitter=jitter).delay(workspace, due)
    already = (datetime.now(UTC) - due).total_seconds()  # one that waited for the run before has waited enough
    if (left := min(delay, delay - already)) > 0:
        logger.info("starts in %.0f s, as the schedule's jitter says", left)
        time.sleep(left)


@contextmanager
def place_of(workspace: str, changes: Sequence[str] = ()) -> Iterator[Workspace]:
    """Where a run works: in the workspace, or, when a schedule with a revision started it, in its checkout.

    Args:
        workspace, changes: as for `obey_schedule`, which comes first.

    Raises:
        InputError: as that, and as `Workspace.at` and `tasks.versioning.checkout.checked_out`.
    """
    obey_schedule(workspace, changes)
    ws, revision = Workspace.at(workspace), os.environ.get(_REVISION)
    if not revision:
        yield ws
        return
    from tasks.versioning.checkout import checked_out

    with checked_out(ws, revision) as checkout:
        logger.info("works in %s, at commit %s (%s)", checkout.ws.root, checkout.commit[:10], revision)
        yield checkout.ws
