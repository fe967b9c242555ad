"""Who is told what by webhooks: a decision with its rules, a rollback with its reason, a flow that failed."""

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from prefect.runtime import flow_run

from dass.errors import InputError
from flows.exit_status import KINDS, judged
from tasks.notify import tell
from tasks.registry.key_file import key_name
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import lease_of
from tasks.workspace.settings import Notify, load_settings

if TYPE_CHECKING:
    from tasks.promotion.champion import RolledBack
    from tasks.promotion.decision import Decision

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("dass")


def tells_failure(work: Callable[P, T]) -> Callable[P, T]:
    """A flow's body whose failure is told, and raised as it was. Its first parameter is the workspace.

    An interrupted one did not fail.
    """

    @wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except Exception as error:
            _tell_failure(str(args[0] if args else kwargs["workspace"]), work.__name__, error)
            raise

    return told


def tell_decision(notify: Notify, decision: "Decision") -> None:
    """That a version was made champion, or refused, with every rule that did not hold."""
    failed = [each.as_json() for each in decision.rulings if not each.passed]
    why = decision.reason or "; ".join(each["told"] for each in failed) or "every rule holds"
    tell(
        notify,
        "promoted" if decision.promoted else "refused",
        {
            "model": decision.model,
            "version": decision.version,
            "by": decision.signed_by,
            "why": why,
            "rules": failed,
            "forced": decision.forced,
            "previous": decision.previous,
            "ledger_entry": decision.entry,
            "runs": {"mlflow": decision.run_id, **_flow_run()},
        },
    )


def tell_rollback(notify: Notify, done: "RolledBack") -> None:
    """That an earlier champion is the champion again."""
    entry = done.entry
    tell(
        notify,
        "rolled_back",
        {
            "model": entry.model,
            "version": entry.version,
            "by": entry.actor,
            "why": entry.details.get("reason"),
            "previous": entry.details.get("previous"),
            "ledger_entry": entry.n,
            "runs": _flow_run(),
        },
    )


def tell_lost(ws: Workspace, model: str, notify: Notify) -> None:
    """In a run that took the workspace over from one that was lost: it could not tell so itself."""
    lease = lease_of(ws)
    if lease is None or lease.lost is None:
        return
    left = lease.lost.work.get("flow_run")
    runs = {"prefect": left} if left else {}
    tell(notify, "failed", {"model": model, "flow": "run", "kind": "lost", "why": lease.reason, "runs": runs})


def _tell_failure(workspace: str, flow: str, error: Exception) -> None:
    try:
        settings = load_settings(Workspace(Path(workspace)).params)
    except (InputError, OSError):
        return  # nothing says who is to be told
    try:
        by: str | None = key_name()
    except (InputError, OSError):
        by = None
    status, why = judged(error)
    what = {"model": settings.register_.model, "flow": flow, "by": by, "kind": KINDS[status], "why": why}
    tell(settings.notify, "failed", {**what, "runs": _flow_run()})


def _flow_run() -> dict[str, str]:
    return {} if flow_run.id is None else {"prefect": str(flow_run.id)}
