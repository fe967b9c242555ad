"""The workspace's last runs, as Prefect has them: started by a person or a schedule, and how each ended.

The database of our own servers is asked itself: Prefect takes a second to import, and no server is up between runs.
Where Prefect's settings name a server or another database, Prefect is asked.
"""

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dass.errors import InfrastructureError, InputError
from flows.environment import own_prefect_database
from flows.watch import VERSION_TAG
from tasks.workspace.folder import Workspace
from tasks.workspace.locked import is_locked, told_lock

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_LOOKED_AT = 200  # runs that a server is asked for: those of other workspaces are among them
_BUSY_SECONDS = 1.0
_SHOWN = "'RUNNING', 'PENDING', 'CANCELLING', 'COMPLETED', 'FAILED', 'CRASHED', 'CANCELLED', 'PAUSED'"
_RUNS = f"""
select flow.name, flow_run.name, flow_run.state_name, flow_run_state.message, flow_run.deployment_id,
       flow_run.start_time, flow_run.end_time, flow_run.tags
from flow_run join flow on flow.id = flow_run.flow_id left join flow_run_state on flow_run_state.id = flow_run.state_id
where flow_run.parent_task_run_id is null and flow_run.start_time is not null and flow_run.state_type in ({_SHOWN})
      and json_extract(flow_run.parameters, '$.workspace') = :workspace
order by flow_run.start_time desc limit :limit
"""


@dataclass(frozen=True)
class PastRun:
    """One run.

    Attributes:
        flow: "compress", "sweep", "promote", ...
        name: Prefect's name of it.
        by: "schedule" (or another deployment), or "hand".
        state: Prefect's name of how it ended, or Running.
        began: ISO 8601, UTC.
        seconds: how long it took, or has worked so far.
        version: that it registered, or None.
        message: what Prefect says of the state, on one line; None of one that is well.
    """

    flow: str
    name: str
    by: str
    state: str
    began: str
    seconds: float
    version: str | None
    message: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Runs:
    """What Prefect knows.

    Attributes:
        last: the newest first.
        due: when a server's deployments start the workspace's next run, ISO 8601; None: none is planned, or there is no
            server that plans.
    """

    last: list[PastRun]
    due: str | None


def past_runs(ws: Workspace, limit: int) -> Runs:
    """The last runs of a workspace.

    Raises:
        InputError: Prefect's settings cannot be used, the server they name does not answer, or the database that holds
            the runs cannot be read.
    """
    own = own_prefect_database()
    if own is not None:
        return Runs(_in_database(own, ws, limit), None)
    from flows.prefect_api import check_api
    from flows.prefect_database import Database
    from flows.prefect_settings import prefect_settings

    settings = prefect_settings()
    if settings.api.url:
        check_api(settings)
        return _on_server(ws, limit)
    database = Database.of(settings, ws.private)
    if database.file is None:
        raise InputError(f"Prefect's runs are in {database.name}: start its server, and set PREFECT_API_URL.")
    return Runs(_in_database(database.file, ws, limit), None)


def _in_database(file: Path, ws: Workspace, limit: int) -> list[PastRun]:
    if not file.is_file():
        return []
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        ) as connection:
            rows = connection.execute(_RUNS, {"workspace": str(ws.root), "limit": limit}).fetchall()
    except sqlite3.Error as error:
        if is_locked(error):
            raise InfrastructureError(f"{file}: {told_lock(file, _BUSY_SECONDS)}.") from None
        raise InputError(f"Prefect's database {file} cannot be read ({error}).") from None
    found = []
    for flow, name, state, message, deployment, start, end, tags in rows:
        began, ended = _time(start), _time(end) if end else datetime.now(UTC)
        found.append(_past(flow, name, state, message, deployment is not None, began, ended, json.loads(tags)))
    return found


def _time(text: str) -> datetime:
    """As SQLite has it: in UTC, without saying so."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _past(
    flow: str,
    name: str,
    state: str | None,
    message: str | None,
    is_scheduled: bool,
    began: datetime,
    ended: datetime,
    tags: list[str],
) -> PastRun:
    version = next((tag.removeprefix(VERSION_TAG) for tag in tags if tag.startswith(VERSION_TAG)), None)
    told = " ".join((message or "").split()) if state not in ("Completed", "Running") else ""
    seconds = round(max(0.0, (ended - began).total_seconds()), 1)
    by = "schedule" if is_scheduled else "hand"
    return PastRun(flow, name, by, state or "", began.isoformat(timespec="seconds"), seconds, version, told or None)


def _on_server(ws: Workspace, limit: int) -> Runs:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    planned = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.SCHEDULED])))

    def is_ours(run: "FlowRun") -> bool:
        return run.parameters.get("workspace") == str(ws.root)

    with get_client(sync_client=True) as client:
        runs = [
            run
            for run in client.read_flow_runs(flow_run_filter=begun, sort=FlowRunSort.START_TIME_DESC, limit=_LOOKED_AT)
            if is_ours(run) and run.start_time is not None
        ][:limit]
        flows = {flow: client.read_flow(flow).name for flow in {run.flow_id for run in runs}}
        waiting = [
            run.expected_start_time
            for run in client.read_flow_runs(
                flow_run_filter=planned, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_LOOKED_AT
            )
            if is_ours(run) and run.expected_start_time is not None
        ]
    last = []
    for run in runs:
        assert run.start_time is not None
        last.append(
            _past(
                flows[run.flow_id],
                run.name,
                run.state_name,
                run.state.message if run.state else None,
                run.deployment_id is not None,
                run.start_time,
                run.end_time or datetime.now(UTC),
                run.tags,
            )
        )
    return Runs(last, waiting[0].isoformat(timespec="seconds") if waiting else None)
