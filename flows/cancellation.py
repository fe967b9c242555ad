"""What Prefect hears of a run that was interrupted: Cancelled, not crashed, and never running for ever."""

from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Crashed

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

_FLOWS = ["compress", "sweep"]
_MESSAGE = "Interrupted. Finished layers are kept; run again to go on."
_KILLED = "Its process was killed. Finished layers are kept; the next run went on behind them."


def cancel_when_interrupted(flow: Any, flow_run: "FlowRun", state: "State") -> None:
    """A flow's hook: Prefect calls an interrupted run crashed."""
    if "signal" in (state.message or ""):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message=_MESSAGE), force=True)


def cancel_unfinished(workspace: str) -> None:
    """Cancel the workspace's runs that Prefect thinks are at work. Call when none is."""
    _end_unfinished(workspace, Cancelled(message=_MESSAGE), StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def crash_unfinished(workspace: str) -> None:
    """Call the workspace's runs crashed whose process was killed: Prefect would show them at work for ever.

    Call while the workspace is locked, and its database is nobody else's: then none of them lives. One that a schedule
    is about to start (pending) is left alone.
    """
    _end_unfinished(workspace, Crashed(message=_KILLED), StateType.RUNNING)


def _end_unfinished(workspace: str, state: "State", *seen_as: StateType) -> None:
    ours = FlowFilter(name=FlowFilterName(any_=_FLOWS))
    working = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(seen_as))))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_filter=ours, flow_run_filter=working):
            if run.parameters.get("workspace") == workspace:
                client.set_flow_run_state(run.id, state, force=True)
