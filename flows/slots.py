"""Slots that dead runs keep: runs of deployments that Prefect counts as at work, and whose process is gone.

A worker tells Prefect when a run of its own dies. Where the worker died, too, nobody does: the run counts against its
work pool's and its deployment's limit for good, and the next one never starts. Prefect frees both where a run's state
becomes a final one: the pool counts states, and the deployment's slot is given back on the way, whether its lease was
renewed lately or is gone.

Each run holds a lease of its own while it works (`flows.served`). What has died on this machine for certain is called
crashed; so is, by a new worker, what another machine holds in a shared folder and is silent about. One without a lease
was not that far yet: it was its worker's, and a new worker in its place knows.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.cancellation import crashed
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Holder
from tasks.workspace.lock import dead_flow_runs, flow_run_file
from tasks.workspace.redaction import redacted

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_SILENCE = timedelta(minutes=2)
"""A worker is heard of every half a minute. One that was not for so long before a run began had died by then."""
_OF_A_RUN = "PREFECT__FLOW_RUN_ID"  # in the environment of a process that works on one

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class NewWorker:
    """A worker that is about to start, in the place of one that is gone.

    Attributes:
        name: what it is called, as its predecessor on this machine was, and none on another.
        pool: the work pool.
    """

    name: str
    pool: str


def free_slots(ws: Workspace, worker: NewWorker | None = None) -> list[str]:
    """Call the workspace's dead runs crashed at the server that Prefect's settings name; each is told in a line.

    Where Prefect cannot be asked that is told, and nothing else happens: whoever calls has other work.

    Args:
        ws: whose. Runs of other workspaces are left alone.
        worker: takes runs from now on; none of this machine's does meanwhile. None: whoever calls does not know of runs
            without a lease.

    Returns:
        The names of the runs.
    """
    try:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            return list(_freed(client, ws, worker))
    except Exception as error:
        told = redacted(f"{type(error).__name__}: {error}".splitlines()[0])
        logger.warning("Slots of runs that are gone are not looked for: Prefect cannot be asked (%s)", told)
        return []


def _freed(client: "SyncPrefectClient", ws: Workspace, worker: NewWorker | None) -> Iterator[str]:
    dead = dead_flow_runs(ws, watch=worker is not None)
    left = set()
    for run in _unended(client):
        if run.parameters.get("workspace") != str(ws.root):
            continue
        why = _reason(run, dead.get(str(run.id)), flow_run_file(ws, str(run.id)), worker, client)
        if why is None:
            left.add(str(run.id))
            continue
        client.set_flow_run_state(run.id, crashed(why), force=True)
        logger.warning("Flow run %s was lost (%s): it is called crashed, and its slot is free", run.name, why)
        yield run.name
    for name in dead.keys() - left:  # their state is a final one now, or was
        flow_run_file(ws, name).unlink(missing_ok=True)


def _reason(
    run: "FlowRun", dead: Holder | None, lease: Path, worker: NewWorker | None, client: "SyncPrefectClient"
) -> str | None:
    """Why a run is dead; None: it lives, or who knows.

    Args:
        run: one that takes a slot.
        dead: who held its lease, and is gone; None: its lease says no such thing.
        lease: where it is.
        worker, client: as for `_freed`.
    """
    if _lives_here(run):
        return None
    # One that is begun anew under the same id has the lease of its last time until it takes its own.
    assert run.state is not None
    if dead is not None and not run.state.is_pending() and dead.owner.work.get("count") == str(run.run_count):
        return dead.reason
    if worker is not None and (dead is not None or not lease.exists()) and _was_of(run, worker, client):
        return "its worker was killed before it began"
    return None


def _unended(client: "SyncPrefectClient") -> list["FlowRun"]:
    """Every run of a deployment that takes a slot."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    working = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    asked = FlowRunFilter(
        state=FlowRunFilterState(type=working), deployment_id=FlowRunFilterDeploymentId(is_null_=False)
    )
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=asked, offset=len(found)):
        found += page
    return found


def _was_of(run: "FlowRun", worker: NewWorker, client: "SyncPrefectClient") -> bool:
    """Whether a run that holds no lease was the predecessor's of a worker."""
    if run.work_pool_name != worker.pool:
        return False
    assert run.state is not None
    since = run.state.timestamp - _SILENCE
    for other in client.read_workers_for_work_pool(worker.pool):
        if other.name != worker.name and other.last_heartbeat_time and other.last_heartbeat_time >= since:
            logger.warning(
                "Flow run %s is left as it is: worker %s may have it. Where it has not, end the run on Prefect's page",
                run.name,
                other.name,
            )
            return False
    return True


def _lives_here(run: "FlowRun") -> bool:
    """Whether a process of this machine works on a run, or may: a number alone may be another process's by now."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(_OF_A_RUN) == str(run.id):
                return True
        except psutil.AccessDenied:
            if str(process.pid) == run.infrastructure_pid:
                return True
        except (psutil.Error, OSError):
            continue
    return False


def own_name() -> str:
    """What this machine's worker is called unless it is given a name."""
    return f"dass@{os.uname().nodename}"
