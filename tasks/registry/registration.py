"""The registry: one MLflow run and one registered model version for each result.

A version is complete or absent. Everything is logged first; the version is made with all its tags at once; the ledger's
entry and the alias come last. The same result registered again is the version that is already there.
"""

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import sha256_file
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.attempts import Attempt, begin, clear, forget, unfinished
from tasks.registry.checked import registration_of
from tasks.registry.description import description
from tasks.registry.key_file import fingerprint, public_key
from tasks.registry.ledger import Ledger
from tasks.registry.place import artifacts, local_path
from tasks.registry.publishing import (
    ALIAS,
    anchor_ledger,
    check_may_register,
    complete,
    entry_details,
    publish,
    registered_before,
)
from tasks.registry.result import Result
from tasks.registry.signing import SIGNATURE
from tasks.registry.tracking import (
    artifact_location,
    check_reachable,
    is_embedded,
    tracking,
    tracking_uri,
)
from tasks.registry.version_folder import version_folder
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.recipes import recipe_of
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["ALIAS", "Registration", "check_reachable", "register", "registered"]

_METRICS_AT_ONCE = 500  # MLflow takes 1000 a request
_NOT_IN_METRICS = re.compile(r"[^\w.\- :]", re.ASCII)
_LONGEST_METRIC = 250
_DATASET_DIGEST = 36  # MLflow's longest


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


def register(workspace: Workspace, settings: Settings, provenance: dict[str, Any]) -> Registration:
    """Record the workspace's result as an MLflow run, register its folder, and point `challenger` at it.

    Args:
        workspace: every stage has run.
        settings: what it ran with.
        provenance: {"git_commit", "git_dirty", "dvc": {path: md5}, "seconds": {stage: seconds}}, and "experiment":
            {"name", "commit"} when the workspace was saved as a DVC experiment, and "flow_run": {"id", "name"} and
            perhaps "url" when Prefect conducts.

    Raises:
        InputError: a stage has not run, a file was changed since its stage wrote it, or the experiment or the signing
            key cannot be used.
        UnavailableError: this very result was registered before, and the version's files are gone.
        SignatureError: artifacts/pruned holds what is not signed, such as a pickle.
        TrackingError: MLflow failed. The run is marked FAILED and nothing else is left.
    """
    result = Result.read(workspace, settings)
    model = settings.register_.model
    with tracking(workspace) as client:
        store = _store(workspace)
        for left in unfinished(workspace, store):
            _clear(workspace, client, left, "KILLED")
        existing = registered_before(workspace, client, model, result.digest)
        if existing is not None:
            return _registration(workspace, client, existing, created=False)
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        from tasks.registry.unchanged import check_unchanged  # here: torch takes seconds

        check_unchanged(workspace, settings)
        experiment = experiment_of(workspace, client, settings.register_.experiment)
        check_may_register(workspace, client, model)  # before anything is written
        tags = _tags(result, provenance, fingerprint(public_key()))
        attempt = begin(workspace, store, experiment, model)
        note = {MLFLOW_RUN_NOTE: description(model, result, provenance)}
        with _cleared(workspace, client, attempt), _run(client, attempt, _run_name(settings), tags | note) as run_id:
            model_id, signature = _log_model(
                client, workspace, settings, provenance, experiment, run_id, tags, result.digest
            )
            _log_settings(client, run_id, settings)
            _log_metrics(workspace, client, run_id, model_id, result, provenance["seconds"])
            _log_files(workspace, client, run_id, settings)
            _log_datasets(workspace, client, run_id, result)
            details = entry_details(result, provenance, signature)
            tags |= _figures_as_tags(result)
            made = publish(workspace, client, attempt, run_id, model_id, tags, result.manifest_digest, details)
        anchor_ledger(workspace, client, model)
        return _registration(workspace, client, made, created=True)


def registered(workspace: Workspace, settings: Settings) -> Registration | None:
    """What `register` would find of the workspace's result; None: it has something to do or to clear.

    Raises:
        InputError, UnavailableError, SignatureError, TrackingError: as `register`.
    """
    result = Result.read(workspace, settings)
    with tracking(workspace) as client:
        if unfinished(workspace, _store(workspace)):
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


def experiment_of(workspace: Workspace, client: "MlflowClient", name: str) -> str:
    """The id of the experiment that results go to; it is made when there is none.

    Raises:
        InputError: it was deleted, or its files are gone.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifact_location(workspace)))
    if found.lifecycle_stage != "active":
        raise InputError(
            f"register.experiment {name!r} was deleted in MLflow. "
            f"Restore it (mlflow experiments restore -x {found.experiment_id}) or choose another name."
        )
    folder = local_path(found.artifact_location)
    is_gone = folder is not None and not folder.is_dir() and folder != artifacts(workspace)  # ours comes with a file
    if is_gone and client.search_runs([found.experiment_id], max_results=1):
        raise InputError(
            f"register.experiment {name!r} keeps its files in {folder}, which is gone, and this workspace is "
            f"{workspace.root}. Was it moved? Put {folder} back, or choose another experiment."
        )
    return str(found.experiment_id)


def _store(workspace: Workspace) -> str:
    """Which MLflow this is, in a note. The embedded one is the workspace's own, wherever that lies."""
    return "mlflow.db" if is_embedded(workspace) else shown_address(tracking_uri(workspace))


@contextmanager
def _cleared(workspace: Workspace, client: "MlflowClient", attempt: Attempt) -> Iterator[None]:
    """Around an attempt: when it fails nothing is left of it but its run, FAILED, or KILLED when it was interrupted."""
    try:
        yield
    except BaseException as error:
        try:
            _clear(workspace, client, attempt, "FAILED" if isinstance(error, Exception) else "KILLED")
        except Exception as failed:  # the reason why we are here may be why this fails: the note stays for the next run
            error.add_note(f"What was registered so far is cleared by the next run: {failed}")
        raise
    forget(workspace, attempt)


def _clear(workspace: Workspace, client: "MlflowClient", attempt: Attempt, status: str) -> None:
    clear(client, attempt, lambda made: complete(workspace, client, made), status)
    forget(workspace, attempt)


@contextmanager
def _run(client: "MlflowClient", attempt: Attempt, name: str, tags: dict[str, str]) -> Generator[str]:
    """An MLflow run that ends FINISHED when all went well."""
    # Not mlflow.start_run(): the caller may be inside a run, and it adds the git remote's URL, which may hold a token.
    run_id = client.create_run(attempt.experiment, tags={**tags, ATTEMPT: attempt.id}, run_name=name).info.run_id
    yield run_id
    client.set_terminated(run_id, "FINISHED")


def _log_model(
    client: "MlflowClient",
    workspace: Workspace,
    settings: Settings,
    provenance: dict[str, Any],
    experiment: str,
    run_id: str,
    tags: dict[str, str],
    registration: str,
) -> tuple[str, str]:
    """Give MLflow the version's folder, byte for byte as it was signed.

    Returns:
        The logged model's id, and sha256 of the signature.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    params = {name: str(value) for name, value in settings.prune.model_dump().items()}
    logged = client.create_logged_model(experiment, "pruned", source_run_id=run_id, tags=tags, params=params)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    with version_folder(workspace, settings, provenance, registration, model) as folder:
        signature = sha256_file(folder / SIGNATURE)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return str(logged.model_id), signature


def _log_settings(client: "MlflowClient", run_id: str, settings: Settings) -> None:
    from mlflow.entities import Param

    values = flat(settings.model_dump(mode="json", by_alias=True))
    values["recipe"] = recipe_of(settings) or "none"
    client.log_batch(run_id, params=[Param(name, _text(value)) for name, value in values.items()])


def _log_metrics(
    workspace: Workspace,
    client: "MlflowClient",
    run_id: str,
    model_id: str,
    result: Result,
    seconds: dict[str, float],
) -> None:
    """The figures; along windows and by token frequency (place as step); seconds a stage; and for each layer (as step)
    its shares, error, norms and seconds."""
    from mlflow.entities import Metric

    from tasks.pruning.stages import (
        seconds_per_layer,  # here: torch takes seconds, and a result known before needs none
    )

    layer_seconds = seconds_per_layer(workspace)
    now = int(datetime.now(UTC).timestamp() * 1000)
    metrics = [Metric(_metric(name), value, now, 0, model_id=model_id) for name, value in result.figures.items()]
    for name, series in result.series.items():
        metrics += [Metric(_metric(name), value, now, step) for step, value in series]
    metrics += [Metric(f"seconds.{stage}", value, now, 0) for stage, value in seconds.items()]
    for layer in result.manifest["layers"]:
        step = layer["layer"]
        measured = ("sparsity", "relative_error", "fitted_error", "held_back_error", "norm", "refined")
        values = flat({"layer": {key: layer[key] for key in measured if layer.get(key) is not None}})
        if layer_seconds is not None:
            values["layer.seconds"] = layer_seconds[step]
        metrics += [Metric(name, value, now, step) for name, value in values.items()]
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])


def _metric(name: str) -> str:
    """A figure's name as MLflow takes it: a text or a task may be called anything."""
    return _NOT_IN_METRICS.sub("_", name)[:_LONGEST_METRIC]


def _log_files(workspace: Workspace, client: "MlflowClient", run_id: str, settings: Settings) -> None:
    client.log_artifact(run_id, str(workspace.masks / "manifest.json"))
    if settings.recover.steps:
        client.log_artifact(run_id, str(workspace.recovered / "recovery.json"))
    client.log_artifact(run_id, str(workspace.metrics / "evaluation.json"))
    if settings.evaluate.tasks:
        client.log_artifact(run_id, str(workspace.metrics / "tasks.json"))
    client.log_artifact(run_id, str(workspace.plots / "layers.png"), "plots")
    client.log_artifact(run_id, str(workspace.plots / "norms.png"), "plots")
    client.log_dict(run_id, settings.model_dump(mode="json", by_alias=True), "settings.json")


def _log_datasets(workspace: Workspace, client: "MlflowClient", run_id: str, result: Result) -> None:
    """Calibration and evaluation windows by digest and origin; the windows themselves stay with DVC."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
    from safetensors.numpy import load_file

    for context, folder, record in (
        ("calibration", workspace.calibration, result.calibration_set),
        ("evaluation", workspace.evaluation, result.evaluation_set),
    ):
        uri = record["source"]["uri"]
        name = Path(uri if isinstance(uri, str) else uri[0]).name
        texts = {"texts": record["texts"]} if record.get("texts") else {}
        origin = {**record["source"], **texts, "tokenizer": record["tokenizer"], "tokens_sha256": record["digest"]}
        windows = load_file(folder / "tokens.safetensors")["input_ids"]
        dataset = from_numpy(windows, CodeDatasetSource(origin), name=name, digest=record["digest"][:_DATASET_DIGEST])
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])


def _tags(result: Result, provenance: dict[str, Any], key: str) -> dict[str, str]:
    """Where the result comes from. The same on the run, the logged model and the version."""
    dirty = provenance["git_dirty"]
    return {
        "registration": result.digest,
        "fingerprint": result.manifest["fingerprint"],
        "base": result.manifest["base"]["digest"],
        "masks": result.manifest["masks"]["digest"],
        "manifest": result.manifest_digest,
        "artifact": result.artifact,
        "key": key,
        "method": result.manifest["settings"]["prune"]["method"],
        "pattern": result.manifest["settings"]["prune"]["pattern"],
        "calibration": result.calibration_set["digest"],
        "evaluation": result.evaluation_set["digest"],
        "git_commit": provenance["git_commit"] or "none",
        "git_dirty": "unknown" if dirty is None else str(dirty).lower(),
        **{f"dvc.{path}": md5 for path, md5 in provenance["dvc"].items()},
        **{f"dvc_experiment.{what}": value for what, value in provenance.get("experiment", {}).items()},
        **{f"prefect.flow_run_{what}": value for what, value in provenance.get("flow_run", {}).items()},
    }


def _figures_as_tags(result: Result) -> dict[str, str]:
    names = ("dense.perplexity", "pruned.perplexity", "ratio", "sparsity.mlp", "sparsity.model", "context_length")
    return {name: repr(result.figures[name]) for name in names}


def _run_name(settings: Settings) -> str:
    prune = settings.prune
    return f"{settings.register_.model} {prune.method} {prune.pattern}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
