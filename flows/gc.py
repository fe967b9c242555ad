"""Freeing what nothing registered needs, as a flow: what the deployment `gc` does. `dass gc` asks first."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from dass.errors import InfrastructureError
from flows.cancellation import cancel_when_interrupted
from flows.retries import AGAIN
from flows.served import served
from tasks.disk import freeing
from tasks.disk.freeing import Asked, Freed, Plan
from tasks.registry.registration import check_reachable
from tasks.workspace.folder import Workspace
from tasks.workspace.sizes import in_words

_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@flow(name="gc", flow_run_name="gc", persist_result=False, on_crashed=[cancel_when_interrupted])
@served
def gc(workspace: str, dry_run: bool = True, keep_sweeps: bool = False, deleted_versions: bool = False) -> Freed | None:
    """Free work folders, DVC's cache and MLflow's files that no version, commit, work tree or unfinished run needs.

    Args:
        workspace: the folder with params.yaml, dvc.yaml and .dvc. A deployment takes none but its own.
        dry_run: only show what would go, as the artifact `freed`.
        keep_sweeps: leave the masks of finished sweeps.
        deleted_versions: also free the files of versions that were deleted in MLflow.
    """
    ws = Workspace.at(workspace)
    check_reachable(ws)
    asked = Asked(sweeps=not keep_sweeps, deleted_versions=deleted_versions)
    plan = look(ws, asked)
    show(plan)
    return None if dry_run else free(ws, asked, plan)


@task(name="look", **_PLAIN, **AGAIN)
def look(ws: Workspace, asked: Asked) -> Plan:
    return freeing.look(ws, asked)


@task(name="show", **_PLAIN)
def show(plan: Plan) -> None:
    """A table with a row for each kind of thing."""
    rows = [{**row.as_json(), "size": in_words(row.bytes)} for row in plan.rows]
    rows += [{**each.as_json(), "size": "stays"} for each in plan.left]
    told = f"{in_words(plan.bytes)} that nothing needs, and what stays"
    create_table_artifact(rows or [{"what": "nothing"}], key="freed", description=told)


@task(name="free", **_PLAIN)
def free(ws: Workspace, asked: Asked, plan: Plan) -> Freed:
    freed = freeing.free(ws, asked, plan.names)
    if freed.failed:
        raise InfrastructureError(f"{len(freed.failed)} could not be removed, the first: {freed.failed[0]}")
    return freed
