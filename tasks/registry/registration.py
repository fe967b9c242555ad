"""The registry: one MLflow run and one registered model version for each result.

A version is complete or absent. Everything is logged first; the version is made with all its tags at once; the ledger's
entry and the alias come last. The same result registered again is the version that is already there.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dass.files import sha256_file
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.attempts import Attempt, begin, unfinished
from tasks.registry.checked import registration_of
from tasks.registry.clearing import clear_left, cleared, store_named
from tasks.registry.description import description
from tasks.registry.experiment import experiment_of
from tasks.registry.handed_in import hand_in
from tasks.registry.key_file import fingerprint, public_key
from tasks.registry.ledger import Ledger
from tasks.registry.live import LiveRun, Shown
from tasks.registry.publishing import (
    ALIAS,
    anchor_ledger,
    check_may_register,
    entry_details,
    publish,
    registered_before,
)
from tasks.registry.result import Result
from tasks.registry.run_record import (
    figures_as_tags,
    log_datasets,
    log_files,
    log_metrics,
    log_settings,
    run_name,
    source_tags,
    tags_of,
)
from tasks.registry.signing import SIGNATURE
from tasks.registry.tracking import check_reachable, reading, tracking, tracking_uri
from tasks.registry.version_folder import CARD, version_folder
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["ALIAS", "Registration", "check_reachable", "register", "registered"]

_SPELT = str.maketrans({":": " of ", "%": " percent"})
"""MLflow takes neither in a logged model's name."""


@dataclass(frozen=True)
class Registration:
    """Where a result is registered.

    Attributes:
        model: registered model's name.
        version: its version that is this result.
        run_id: the MLflow run that recorded it.
        experiment_id: the run's experiment.
        created: False when this very result was there before.
        tracking_uri: where MLflow keeps it, without credentials.
        signed_by: the key that signed it: its name and the start of its fingerprint.
    """

    model: str
    version: str
    run_id: str
    experiment_id: str
    created: bool
    tracking_uri: str
    signed_by: str


def register(
    workspace: Workspace, settings: Settings, provenance: dict[str, Any], live: LiveRun | None = None
) -> Registration:
    """Record the workspace's result as an MLflow run, register its folder, and point `challenger` at it.

    Args:
        workspace: every stage has run.
        settings: what it ran with.
        provenance: {"git_commit", "git_dirty", "dvc": {path: md5}, "seconds": {stage: seconds}}, "experiment":
            {"name", "commit"} when the workspace was saved as a DVC experiment, "flow_run": {"id", "name"} and perhaps
            "url" when Prefect conducts, and "remotes": {name: address} where the data was pushed.
        live: the run that has shown the work; None: one is made.

    Raises:
        InputError: a stage has not run, a file was changed since its stage wrote it, or the experiment or the signing
            key cannot be used.
        UnavailableError: this very result was registered before, and the version's files are gone.
        SignatureError: artifacts/pruned holds what is not signed, such as a pickle, or was changed meanwhile.
        TrackingError: MLflow failed. The run is marked FAILED and nothing else is left.
    """
    result = Result.read(workspace, settings)
    model = settings.register_.model
    with tracking(workspace) as client:
        clear_left(workspace, client, live.attempt if live else None)
        existing = registered_before(workspace, client, model, result.digest)
        if existing is not None:
            if live is not None:
                live.drop(client)
            return _registration(workspace, client, existing, created=False)
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        from tasks.registry.unchanged import check_unchanged  # here: torch takes seconds

        check_unchanged(workspace, settings)
        experiment = experiment_of(workspace, client, settings.register_.experiment)
        check_may_register(workspace, client, model)  # before anything is written
        key = fingerprint(public_key())
        tags = tags_of(result, provenance)
        shown = live.take() if live else None
        attempt = shown.attempt if shown else begin(workspace, store_named(workspace), experiment, model)
        with cleared(workspace, client, attempt), _run(client, attempt, shown, settings, provenance, tags) as run_id:
            logged = _log_model(client, workspace, settings, provenance, experiment, run_id, tags, result.digest)
            told = description(logged.card, provenance)
            client.set_tag(run_id, MLFLOW_RUN_NOTE, told)
            log_settings(client, run_id, settings, result)
            known = shown.metrics if shown else ()
            log_metrics(workspace, client, run_id, logged.model_id, result, provenance["seconds"], known)
            log_files(workspace, client, run_id, settings, result, provenance, key)
            log_datasets(workspace, client, run_id, result)
            details = entry_details(result, provenance, logged.signature)
            tags |= figures_as_tags(result)
            made = publish(
                workspace, client, attempt, run_id, logged.model_id, tags, result.manifest_digest, details, told
            )
        anchor_ledger(workspace, client, model)
        return _registration(workspace, client, made, created=True)


def registered(workspace: Workspace, settings: Settings) -> Registration | None:
    """What `register` would find of the workspace's result; None: it has something to do or to clear.

    Raises:
        InputError, UnavailableError, SignatureError, TrackingError: as `register`.
    """
    result = Result.read(workspace, settings)
    with reading(workspace) as client:
        if unfinished(workspace, store_named(workspace)):
            return None
        existing = registered_before(workspace, client, settings.register_.model, result.digest)
        return None if existing is None else _registration(workspace, client, existing, created=False)


def experiment_name(workspace: Workspace, settings: Settings) -> str:
    """What a DVC experiment of the workspace's result is called: equal results, equal names."""
    return f"dass-{Result.read(workspace, settings).digest[:12]}"


def _registration(workspace: Workspace, client: "MlflowClient", made: "ModelVersion", created: bool) -> Registration:
    _, key = registration_of(Ledger.open(client, made.name, workspace).chain(), made.name, str(made.version))
    return Registration(
        model=made.name,
        version=str(made.version),
        run_id=made.run_id,
        experiment_id=client.get_run(made.run_id).info.experiment_id,
        created=created,
        tracking_uri=shown_address(tracking_uri(workspace)),
        signed_by=key.told,
    )


@contextmanager
def _run(
    client: "MlflowClient",
    attempt: Attempt,
    shown: Shown | None,
    settings: Settings,
    provenance: dict[str, Any],
    tags: dict[str, str],
) -> Generator[str]:
    """An MLflow run that ends FINISHED when all went well, and is as old as the work: the one that has shown it, or a
    new one."""
    tags = {**tags, **source_tags(provenance)}
    if shown is None:
        # Not mlflow.start_run(): the caller may be inside a run, and it adds the git remote's URL, which may hold a
        # token.
        began = time.time() - sum(provenance["seconds"].values())
        made = client.create_run(
            attempt.experiment,
            start_time=int(began * 1000),
            tags={**tags, ATTEMPT: attempt.id},
            run_name=run_name(settings),
        )
        run_id = str(made.info.run_id)
    else:
        from mlflow.entities import RunTag

        run_id = shown.run_id
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    yield run_id
    client.set_terminated(run_id, "FINISHED")


@dataclass(frozen=True)
class _Logged:
    """A version's folder as MLflow has it: the logged model's id, sha256 of its signature, and the model card."""

    model_id: str
    signature: str
    card: str


def _log_model(
    client: "MlflowClient",
    workspace: Workspace,
    settings: Settings,
    provenance: dict[str, Any],
    experiment: str,
    run_id: str,
    tags: dict[str, str],
    registration: str,
) -> _Logged:
    """Give MLflow the version's folder, byte for byte as it was signed."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    params = {name: str(value) for name, value in settings.prune.model_dump().items()}
    name = run_name(settings).translate(_SPELT)
    logged = client.create_logged_model(experiment, name, source_run_id=run_id, tags=tags, params=params)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    with version_folder(workspace, settings, provenance, registration, model) as folder:
        signature = sha256_file(folder / SIGNATURE)
        card = (folder / CARD).read_text(encoding="utf-8")
        hand_in(client, logged, folder)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return _Logged(str(logged.model_id), signature, card)
