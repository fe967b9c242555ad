"""What an MLflow run shows of a result: settings, figures, files, datasets, and tags by which runs are told apart.

Nothing of it is ever believed: what counts is in the version's signed folder, and in the ledger.
"""

import json
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registry.result import Result
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.recipes import recipe_of
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

DIGESTS = "digests.json"

_AT_ONCE = {"metrics": 500, "params": 100}  # MLflow takes 1000 and 100 a request
_NOT_IN_METRICS = re.compile(r"[^\w.\- :]", re.ASCII)
_LONGEST_METRIC = 250
_DATASET_DIGEST = 36  # MLflow's longest
_CONSTANTS = frozenset(
    ("bytes", "context_length", "documents", "grams", "level", "resamples", "steps", "tokens", "windows", "words")
)
"""Figures that say on how much something was measured, and are no result. By the last part of their name."""
_TOLD_OF_A_LAYER = ("sparsity", "relative_error", "fitted_error", "held_back_error", "norm", "refined")


def run_name(settings: Settings) -> str:
    """What tells a run from others: method, pattern, and whatever else is not as published."""
    prune, recover = settings.prune, settings.recover
    told = [prune.method, prune.pattern]
    if ":" not in prune.pattern:
        told[1] = f"{100 * prune.plan.pattern.sparsity:g}%"
    told += [each for each in (prune.layout, prune.update) if each not in ("paper", "none")]
    told += [f"refined by {prune.refine}"] if prune.refine != "none" else []
    told += [prune.allocation] if prune.allocation != "uniform" else []
    told += [f"recovered {recover.steps} steps"] if recover.steps else []
    return " ".join(told)


def tags_of(result: Result, provenance: dict[str, Any]) -> dict[str, str]:
    """What the result is and who made it. The same on the run, the logged model and the version."""
    prune, dirty = result.manifest["settings"]["prune"], provenance["git_dirty"]
    return {
        **{name: str(prune[name]) for name in ("method", "pattern", "layout", "update")},
        "artifact": result.artifact,
        "git_commit": provenance["git_commit"] or "none",
        "git_dirty": "unknown" if dirty is None else str(dirty).lower(),
        **{f"dvc_experiment.{what}": value for what, value in provenance.get("experiment", {}).items()},
        **{f"prefect.flow_run_{what}": value for what, value in provenance.get("flow_run", {}).items()},
        **{f"dvc_remote.{name}": address for name, address in provenance.get("remotes", {}).items()},
    }


def source_tags(provenance: dict[str, Any]) -> dict[str, str]:
    """Where MLflow shows a run to come from."""
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

    commit = provenance.get("git_commit")
    return {
        MLFLOW_SOURCE_NAME: "dass run",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        **({MLFLOW_GIT_COMMIT: commit} if commit else {}),
    }


def figures_as_tags(result: Result) -> dict[str, str]:
    """The figures by which versions are listed, as a version's tags."""
    names = ("dense.perplexity", "pruned.perplexity", "ratio", "sparsity.mlp", "sparsity.model", "context_length")
    return {name: repr(result.figures[name]) for name in names}


def layer_metrics(report: dict[str, Any]) -> dict[str, float]:
    """What is told of one layer, from its report as the manifest has it."""
    return flat({"layer": {key: report[key] for key in _TOLD_OF_A_LAYER if report.get(key) is not None}})


def log_settings(client: "MlflowClient", run_id: str, settings: Settings, result: Result) -> None:
    """Settings, and on how much was measured, as params."""
    from mlflow.entities import Param

    values: dict[str, Any] = {name: value for name, value in result.figures.items() if _is_constant(name)}
    values |= flat(settings.model_dump(mode="json", by_alias=True))
    values["recipe"] = recipe_of(settings) or "none"
    log_in_batches(
        client, run_id, params=[Param(metric_name(name), param_text(value)) for name, value in values.items()]
    )


def log_metrics(
    workspace: Workspace,
    client: "MlflowClient",
    run_id: str,
    model_id: str,
    result: Result,
    seconds: dict[str, float],
    shown: Collection[tuple[str, int]] = (),
) -> None:
    """The figures; along windows and by token frequency (place as step); seconds a stage; and for each layer (as step)
    its shares, error, norms and seconds.

    Args:
        shown: name and step of what the run shows already.
    """
    from mlflow.entities import Metric

    from tasks.pruning.stages import (
        seconds_per_layer,  # here: torch takes seconds, and a result known before needs none
    )

    layer_seconds = seconds_per_layer(workspace)
    now = int(datetime.now(UTC).timestamp() * 1000)
    figures = {name: value for name, value in result.figures.items() if not _is_constant(name)}
    metrics = [Metric(metric_name(name), value, now, 0, model_id=model_id) for name, value in figures.items()]
    for name, series in result.series.items():
        metrics += [Metric(metric_name(name), value, now, step) for step, value in series]
    metrics += [Metric(f"seconds.{stage}", value, now, 0) for stage, value in seconds.items()]
    for layer in result.manifest["layers"]:
        step = layer["layer"]
        values = layer_metrics(layer)
        if layer_seconds is not None:
            values["layer.seconds"] = layer_seconds[step]
        metrics += [Metric(name, value, now, step) for name, value in values.items()]
    new = [metric for metric in metrics if (metric.key, metric.step) not in shown]
    log_in_batches(client, run_id, metrics=new)


def log_in_batches(
    client: "MlflowClient", run_id: str, *, params: Sequence["Param"] = (), metrics: Sequence["Metric"] = ()
) -> None:
    """Log any number of params and metrics, in requests no larger than MLflow takes."""
    for what, entries in (("params", params), ("metrics", metrics)):
        for start in range(0, len(entries), _AT_ONCE[what]):
            client.log_batch(run_id, **{what: entries[start : start + _AT_ONCE[what]]})


def log_files(
    workspace: Workspace,
    client: "MlflowClient",
    run_id: str,
    settings: Settings,
    result: Result,
    provenance: dict[str, Any],
    key: str,
) -> None:
    """The records and plots, and every digest in one file."""
    client.log_artifact(run_id, str(workspace.masks / "manifest.json"))
    if settings.recover.steps:
        client.log_artifact(run_id, str(workspace.recovered / "recovery.json"))
    client.log_artifact(run_id, str(workspace.metrics / "evaluation.json"))
    if settings.evaluate.tasks:
        client.log_artifact(run_id, str(workspace.metrics / "tasks.json"))
    client.log_artifact(run_id, str(workspace.plots / "layers.png"), "plots")
    client.log_artifact(run_id, str(workspace.plots / "norms.png"), "plots")
    client.log_dict(run_id, settings.model_dump(mode="json", by_alias=True), "settings.json")
    digests = {
        "registration": result.digest,
        "fingerprint": result.manifest["fingerprint"],
        "base": result.manifest["base"]["digest"],
        "masks": result.manifest["masks"]["digest"],
        "manifest": result.manifest_digest,
        "calibration": result.calibration_set["digest"],
        "evaluation": result.evaluation_set["digest"],
        "key": key,
        "dvc": provenance["dvc"],
    }
    client.log_dict(run_id, digests, DIGESTS)


def log_datasets(workspace: Workspace, client: "MlflowClient", run_id: str, result: Result) -> None:
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
        texts = {"texts": record["texts"]} if record["texts"] else {}
        origin = {**record["source"], **texts, "tokenizer": record["tokenizer"], "tokens_sha256": record["digest"]}
        windows = load_file(folder / "tokens.safetensors")["input_ids"]
        dataset = from_numpy(windows, CodeDatasetSource(origin), name=name, digest=record["digest"][:_DATASET_DIGEST])
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])


def _is_constant(name: str) -> bool:
    return name.rpartition(".")[2] in _CONSTANTS


def metric_name(name: str) -> str:
    """A figure's name as MLflow takes it: a text or a task may be called anything."""
    return _NOT_IN_METRICS.sub("_", name)[:_LONGEST_METRIC]


def param_text(value: Any) -> str:
    """A setting as a param shows it."""
    return value if isinstance(value, str) else json.dumps(value)
