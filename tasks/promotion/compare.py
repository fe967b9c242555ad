"""`dass compare`: versions side by side, which settings differ and what each of them costs."""

import re
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.registry.checked import CheckedVersion, checked_version
from tasks.registry.result import task_figures
from tasks.registry.timeline import plain
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import EVALUATION, SETTINGS
from tasks.registry.versions import all_versions
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import Fitted, shown, table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.console import Group

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_HEADLINES = re.compile(
    r"dense\.perplexity|pruned\.perplexity|ratio|texts\..*\.ratio|divergence\.(kl|top1_agreement)"
    r"|sparsity\.(mlp|model)|tasks\.mean|tasks\.mean_dense|tasks\..*\.pruned\..*"
)


def compare(ws: Workspace, model: str, runs: list[str]) -> dict[str, Any]:
    """Versions side by side. Figures and settings are those that were signed.

    Args:
        ws: where.
        model: the registered model.
        runs: each a version's number or alias, or the id of the MLflow run that registered it.

    Returns:
        {"model", "runs": [{"asked", "version", "run_id", "when", "by"}], "settings": {key: a value a run} of those that
        differ, "figures": {key: a number or None a run}}

    Raises:
        InputError: fewer than two; or there is no such version.
        SignatureError, BrokenLedger, ForeignChampion: a version is not what was registered.
        TrackingError: MLflow failed.
    """
    if len(runs) < 2:
        raise InputError("compare takes two runs or more. See: dass history")
    with tracking(ws) as client:
        versions = [checked_version(client, model, _version_of(client, model, run), ws) for run in runs]
        settings = [flat({**version.record(SETTINGS), "promote": {}}) for version in versions]
        figures = [_figures(version) for version in versions]
    return {
        "model": model,
        "runs": [
            {
                "asked": run,
                "version": version.number,
                "run_id": version.made.run_id,
                "when": version.entry.time,
                "by": version.entry.actor,
            }
            for run, version in zip(runs, versions, strict=True)
        ],
        "settings": {key: row for key, row in _rows(settings).items() if any(each != row[0] for each in row)},
        "figures": _rows(figures),
    }


def _version_of(client: "MlflowClient", model: str, run: str) -> str:
    """The number of the version that an MLflow run registered; what is no run's id is a number or alias."""
    if not _RUN_ID.fullmatch(run):
        return run
    found = [str(made.version) for made in all_versions(client, model) if made.run_id == run]
    if not found:
        raise InputError(f"MLflow run {run} has registered no version of {model}. See: dass history")
    return found[0]


def _figures(version: CheckedVersion) -> dict[str, float]:
    values = flat({**version.record(EVALUATION), "tasks": task_figures(version.tasks)})
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def _rows(columns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Key -> what each has."""
    return {key: [each.get(key) for each in columns] for key in dict.fromkeys(key for each in columns for key in each)}


def compare_tables(record: dict[str, Any]) -> Fitted:
    """The comparison for a terminal: all settings that differ, and the figures that say what was lost."""
    return Fitted(lambda width: _tables(record, width))


def _tables(record: dict[str, Any], width: int) -> "Group":
    from rich.console import Group
    from rich.markup import escape

    names = [f"v{each['version']}" for each in record["runs"]]
    parts: list[Any] = []
    if record["settings"]:
        settings = table(width, "settings", *names)
        for key, row in record["settings"].items():
            settings.add_row(escape(plain(key)), *(escape(plain(shown(value))) for value in row))
        parts += [settings, ""]
    else:
        parts += ["settings: the same", ""]
    figures = table(width, "figures", *names, right=names)
    for key, row in record["figures"].items():
        if _HEADLINES.fullmatch(key):
            figures.add_row(escape(plain(key)), *("" if value is None else shown(float(value)) for value in row))
    return Group(*parts, figures)
