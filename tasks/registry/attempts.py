"""What a registration has begun, noted in the workspace: a process that is killed leaves it to the next run to clear.

A note is written before anything reaches MLflow and removed when the registration has ended, well or badly. It names
the MLflow run by a tag, because a run has no id before it is made. Whoever reads notes holds the workspace's lock, so
the process that wrote one is gone.
"""

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dass.files import read_json, write_json
from tasks.registry.ledger_run import forget_unused
from tasks.registry.versions import repository
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TAG = "attempt"
"""On an MLflow run, a ledger's too: the attempt that made it."""
ENDED = "ended"
"""On the run of an attempt that ended badly: why."""


@dataclass(frozen=True)
class Attempt:
    """One call of `register`.

    Attributes:
        id: random hex, the run's tag.
        store: which MLflow it speaks to, as it may be shown.
        experiment: the run's experiment.
        model: the registered model's name.
    """

    id: str
    store: str
    experiment: str
    model: str


def begin(workspace: Workspace, store: str, experiment: str, model: str) -> Attempt:
    """Note an attempt."""
    attempt = Attempt(secrets.token_hex(8), store, experiment, model)
    write_json(_note(workspace, attempt), asdict(attempt))
    return attempt


def forget(workspace: Workspace, attempt: Attempt) -> None:
    """Remove the note: nothing is left to clear."""
    _note(workspace, attempt).unlink(missing_ok=True)


def unfinished(workspace: Workspace, store: str) -> list[Attempt]:
    """The attempts on this store that a killed process left behind. Those on others wait until it is asked again."""
    notes = [Attempt(**read_json(path)) for path in sorted(_folder(workspace).glob("*.json"))]
    return [attempt for attempt in notes if attempt.store == store]


def clear(
    client: "MlflowClient",
    attempt: Attempt,
    complete: Callable[["ModelVersion"], bool],
    status: str,
    reason: str | None = None,
) -> None:
    """Remove what an attempt left in MLflow, a version without an entry in the ledger too. One with it is completed.

    Args:
        client: the attempt's store.
        attempt: which one.
        complete: does what is left to do behind the entry; says whether there is one.
        status: what its run becomes, "FAILED" or "KILLED".
        reason: why it was killed, as a tag of the run, where that is known.
    """
    for run in client.search_runs([attempt.experiment], f"tags.{TAG} = '{attempt.id}'"):
        known = [(made, complete(made)) for made in client.search_model_versions(f"run_id = '{run.info.run_id}'")]
        for made in [made for made, is_known in known if not is_known]:
            client.delete_model_version(made.name, made.version)
        if not any(is_known for _, is_known in known):
            remove_models(client, attempt.experiment, run.info.run_id)
            if status == "KILLED" and ENDED not in run.data.tags:
                client.set_tag(run.info.run_id, ENDED, reason or "its process was killed or interrupted")
            client.set_terminated(run.info.run_id, status)
    forget_unused(client, attempt.model, TAG, attempt.id)


def remove_models(client: "MlflowClient", experiment: str, run_id: str) -> None:
    """Delete what a run logged as a model, files included: nothing will ever point at them."""
    for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        repository(client, logged.artifact_location).delete_artifacts()
        client.delete_logged_model(logged.model_id)


def _folder(workspace: Workspace) -> Path:
    return workspace.private / "registering"


def _note(workspace: Workspace, attempt: Attempt) -> Path:
    return _folder(workspace) / f"{attempt.id}.json"
