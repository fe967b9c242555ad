"""What becomes of an attempt to register that ended badly: nothing is left of it but its run, FAILED or KILLED."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.registry.attempts import Attempt, clear, forget, unfinished
from tasks.registry.publishing import complete
from tasks.registry.tracking import is_embedded, tracking_uri
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import lease_of
from tasks.workspace.redaction import shown_address

if TYPE_CHECKING:
    from mlflow import MlflowClient


def store_named(workspace: Workspace) -> str:
    """Which MLflow this is, in a note. The embedded one is the workspace's own, wherever that lies."""
    return "mlflow.db" if is_embedded(workspace) else shown_address(tracking_uri(workspace))


def clear_left(workspace: Workspace, client: "MlflowClient", mine: Attempt | None = None) -> None:
    """Clear what killed processes left, all but this process's own attempt."""
    lease = lease_of(workspace)
    reason = None if lease is None or lease.lost is None else lease.reason
    for left in unfinished(workspace, store_named(workspace)):
        if left != mine:
            clear_attempt(workspace, client, left, "KILLED", reason)


@contextmanager
def cleared(workspace: Workspace, client: "MlflowClient", attempt: Attempt) -> Iterator[None]:
    """Around an attempt: when it fails nothing is left of it but its run, FAILED, or KILLED when it was interrupted."""
    try:
        yield
    except BaseException as error:
        try:
            clear_attempt(workspace, client, attempt, status_of(error))
        except Exception as failed:  # the reason why we are here may be why this fails: the note stays for the next run
            error.add_note(f"What was registered so far is cleared by the next run: {failed}")
        raise
    forget(workspace, attempt)


def clear_attempt(
    workspace: Workspace, client: "MlflowClient", attempt: Attempt, status: str, reason: str | None = None
) -> None:
    """Clear an attempt and forget it."""
    clear(client, attempt, lambda made: complete(workspace, client, made), status, reason)
    forget(workspace, attempt)


def status_of(error: BaseException) -> str:
    """What a run becomes that ended with an error."""
    return "FAILED" if isinstance(error, Exception) else "KILLED"
