"""What Prefect hears of a run that was interrupted: Cancelled, not crashed, and never running for ever."""

import os
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.states import Cancelled

from tasks.workspace.tied import end_with

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

_SCHEDULER = "DASS_SERVED_BY"
_MESSAGE = "Interrupted. Finished layers are kept; run again to go on."


def cancel_when_interrupted(flow: Any, flow_run: "FlowRun", state: "State") -> None:
    """A flow's hook: Prefect calls an interrupted run crashed."""
    if "signal" in (state.message or ""):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message=_MESSAGE), force=True)


def cancel_unfinished(workspace: str) -> None:
    """Cancel the workspace's runs that Prefect thinks are at work. Call when none is."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    working = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=working))):
            if run.parameters.get("workspace") == workspace:
                client.set_flow_run_state(run.id, Cancelled(message=_MESSAGE), force=True)


def schedule_here() -> None:
    """From now on the runs that this process starts end with it."""
    os.environ[_SCHEDULER] = str(os.getpid())


def end_with_schedule() -> None:
    """In a run that a schedule started: end when the schedule's process does, even by kill -9."""
    starter = os.environ.get(_SCHEDULER)
    if starter and int(starter) != os.getpid():
        end_with(int(starter))
