"""What Prefect hears of a run that was interrupted: Cancelled, not crashed, and never running for ever."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from tasks.workspace.folder import Workspace
from tasks.workspace.lock import lease_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

_FLOWS = ["compress", "sweep"]
_MESSAGE = "Interrupted. Finished layers are kept; run again to go on."
_KEPT = "Finished layers are kept; the next run goes on behind them."


def cancel_when_interrupted(flow: Any, flow_run: "FlowRun", state: "State") -> None:
    """A flow's hook: Prefect calls an interrupted run crashed. One that was killed, or ran out of memory, is."""
    if "signal" in (state.message or "") and "SIGKILL" not in (state.message or ""):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message=_MESSAGE), force=True)


def cancel_unfinished(deployment: str) -> None:
    """Cancel a deployment's runs that Prefect thinks are at work. Call when none is."""
    _end(_runs(deployment, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING), Cancelled(message=_MESSAGE))


def crash_left(deployment: str) -> None:
    """Call a deployment's runs crashed that its former scheduler left: they ended with it."""
    left = _runs(deployment, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
    _end(left, Crashed(message=f"Its schedule was killed. {_KEPT}"))


def crash_unfinished(workspace: str) -> None:
    """Call the workspace's runs crashed whose process was killed: Prefect would show them at work for ever.

    Call while the workspace is locked, and its database is nobody else's: then none of them lives. Those of a schedule
    are left alone: they work elsewhere, and their schedule knows of them.
    """
    runs = [run for run in _runs(None, StateType.RUNNING) if run.parameters.get("workspace") == workspace]
    _end([run for run in runs if run.deployment_id is None], Crashed(message=f"Its process was killed. {_KEPT}"))


def crash_lost(ws: Workspace) -> None:
    """In a flow that has taken a workspace over from a run that was lost: say so of that one's flow run, and note this
    one's, to be found if it is lost."""
    lease = lease_of(ws)
    if lease is None or flow_run.id is None:
        return
    lease.note(flow_run=str(flow_run.id))
    left = lease.lost and lease.lost.work.get("flow_run")
    if not left or left == str(flow_run.id):
        return
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):  # it was another server's
        run = client.read_flow_run(UUID(left))
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(run.id, crashed(lease.reason), force=True)


def crashed(reason: str) -> "State":
    """The state of a run that was lost; `reason` as a lease has it."""
    return Crashed(message=f"{reason[:1].upper()}{reason[1:]}. {_KEPT}")


def _runs(deployment: str | None, *seen_as: StateType) -> "list[FlowRun]":
    """The runs of our flows that Prefect sees so; of a deployment, or all."""
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=_FLOWS)),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(seen_as)))),
            deployment_filter=None
            if deployment is None
            else DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
        )


def _end(runs: "list[FlowRun]", state: "State") -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run.id, state, force=True)
