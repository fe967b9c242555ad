"""`dass status`: who works, how the last runs ended, who is champion, what comes next, what is stuck, the disk.

Looks only: nothing is taken, repaired or waited for. What cannot be looked at says so, and the rest is told.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.exit_status import judged
from tasks.disk.unfinished import begun_work, fingerprints_here
from tasks.disk.usage import usage
from tasks.promotion.standing import standing
from tasks.registry.attempts import unfinished
from tasks.registry.clearing import store_named
from tasks.registry.place import database
from tasks.registry.tracking import is_embedded, reading, tracking_uri
from tasks.sweep.left import left_sweeps
from tasks.versioning.checkout import lease_file as checkout_lease
from tasks.versioning.checkout import standing as standing_checkout
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Holder, holder
from tasks.workspace.lock import dead_flow_runs, lease_file, schedule_file
from tasks.workspace.redaction import redacted, shown_address
from tasks.workspace.settings import load_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_GO_ON = "the same dass sweep goes on where it was"
_RUN_AGAIN = "the next dass run goes on behind its finished layers"
_FREE_IT = "dass stack up, or the next run that reports to Prefect, says so there and frees its slot"
_RUNS = 10


def status(ws: Workspace, limit: int = _RUNS) -> dict[str, Any]:
    """Everything, as a record.

    Args:
        ws: where.
        limit: how many of the last runs.

    Returns:
        {"workspace", "store", "working": those who work there now, [{"where", "told", "since"}], "model": as
        `tasks.promotion.standing`, or None, "runs": as `flows.past_runs.PastRun`, the newest first, "next": None or
        {"at", "by", "told"}, "stuck": [{"what", "told", "next"}], "disk": as `tasks.disk.usage.Usage`, "unknown":
        {part: why it could not be looked at}}. Times are ISO 8601.

    Raises:
        InputError: params.yaml cannot be read.
    """
    settings = load_settings(ws.params)
    register = settings.register_
    store = store_named(ws) if is_embedded(ws) else shown_address(tracking_uri(ws))
    unknown: dict[str, str] = {}
    places = {"workspace": holder(lease_file(ws)), "checkout": holder(checkout_lease(ws))}
    schedule = holder(schedule_file(ws))

    def looked(part: str, look: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return look()
        except Exception as error:  # whatever it is, the other parts can be told
            unknown[part] = judged(error)[1]
            return otherwise

    model: dict[str, Any] | None = None
    stuck = looked("stuck", lambda: list(_stuck_here(ws, places, schedule)), [])
    if not is_embedded(ws) or database(ws).is_file():

        def ask() -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
            with reading(ws) as client:
                left = looked("sweeps", lambda: _stuck_sweeps(client, register.experiment, places), [])
                return looked("model", lambda: standing(client, ws, register.model), None), left

        model, left = looked("MLflow", ask, (None, []))
        stuck += left
    from flows.past_runs import Runs, past_runs

    runs: Runs = looked("runs", lambda: past_runs(ws, limit), Runs([], None))
    return {
        "workspace": str(ws.root),
        "store": store,
        "working": [_working(where, each) for where, each in places.items() if each and each.state != "lost"],
        "model": model,
        "runs": [run.as_json() for run in runs.last],
        "next": _next(schedule, runs.due),
        "stuck": stuck,
        "disk": [each.as_json() for each in looked("disk", lambda: usage(ws), [])],
        "unknown": unknown,
    }


def _working(where: str, found: Holder) -> dict[str, Any]:
    lives = "" if found.state == "alive" else "; whether it lives only its heartbeat tells, which the next run watches"
    return {"where": where, "told": redacted(f"{found.owner.told}{lives}"), "since": found.owner.since}


def _next(schedule: Holder | None, due: str | None) -> dict[str, Any] | None:
    """When the next run starts, by the schedule that `dass serve` keeps here, or a server's deployment."""
    if schedule is not None and schedule.state != "lost":
        kept = schedule.owner.work
        spread = f", up to {kept['jitter']} s later" if kept.get("jitter", "0") != "0" else ""
        told = f'"{kept["cron"]}" ({kept["timezone"]}{spread})' if "cron" in kept else "it is starting"
        return {"at": kept.get("due"), "by": f"dass serve, process {schedule.owner.pid}", "told": told}
    return None if due is None else {"at": due, "by": "a deployment of Prefect's server", "told": "deployed"}


def is_due(at: str) -> bool:
    """Whether a time has come: the run has started, or waits for one before it."""
    return datetime.fromisoformat(at) <= datetime.now(UTC)


def _stuck_here(ws: Workspace, places: dict[str, Holder | None], schedule: Holder | None) -> Iterator[dict[str, str]]:
    """What a process that is gone has left in the workspace."""
    for where, found in places.items():
        if found is not None and found.state == "lost":
            told = f"a run was lost ({found.reason}): {found.owner.told}"
            yield _said(f"lock of the {where}", told, _RUN_AGAIN)
    if schedule is not None and schedule.state == "lost":
        told = f"dass serve ended without a word ({schedule.reason}): {schedule.owner.told}"
        yield _said("schedule", told, "start it again: dass serve")
    for dead in dead_flow_runs(ws).values():
        name, flow = dead.owner.work.get("run", ""), dead.owner.work.get("flow", "")
        told = f"{name} ({flow}) of a deployment was lost ({dead.reason}): where its worker was, too, later runs wait"
        yield _said("flow run", told, _FREE_IT)
    if _is_held(places["workspace"]):
        return  # what is half done there, somebody does
    for attempt in unfinished(ws, store_named(ws)):
        told = f"an attempt to register {attempt.model} was left half done ({attempt.id})"
        yield _said("registration", told, "the next dass run completes it or clears it")
    for begun in begun_work(ws, fingerprints_here(ws)):
        yield _said("work", f"{begun.what}: not finished", "the same settings go on behind it")
    there = standing_checkout(ws)
    if there is not None and not _is_held(places["checkout"]):
        for begun in begun_work(there, fingerprints_here(there)):
            yield _said("work of a schedule", f"{begun.what}: not finished", "the next scheduled run goes on behind it")


def _stuck_sweeps(client: "MlflowClient", experiment: str, places: dict[str, Holder | None]) -> list[dict[str, str]]:
    """Sweeps that nobody works on any more. On a server one may run elsewhere, and is not called stuck."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    is_ours = str(client.tracking_uri).startswith("sqlite") and not any(map(_is_held, places.values()))
    return [
        _said("sweep", f"{left.name} was stopped: {left.told or 'nothing more was heard of it'}", _GO_ON)
        for left in left_sweeps(client, str(found.experiment_id))
        if left.status != "RUNNING" or is_ours
    ]


def _is_held(found: Holder | None) -> bool:
    return found is not None and found.state != "lost"


def _said(what: str, told: str, then: str) -> dict[str, str]:
    return {"what": what, "told": redacted(told), "next": then}
