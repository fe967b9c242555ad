"""The experiment that results go to, and how MLflow's pages show it.

MLflow opens an experiment on its traces unless a tag says that models are made in it; and which columns its table of
runs begins with is kept in a tag too, as the page's own button Share writes it.
"""

import json
from typing import TYPE_CHECKING

from dass.errors import InputError
from tasks.registry.place import artifacts, local_path
from tasks.registry.tracking import artifact_location
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

VIEW = "dass"
"""The name of the table's columns, in `experiment_page`."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What MLflow opens on its runs."""

_GUESSED = "_inferred"  # by a page that was opened before
_COLUMNS = (
    *(f"params.`prune.{name}`" for name in ("method", "pattern", "layout", "update", "sparsity")),
    *(f"metrics.`{name}`" for name in ("ratio", "pruned.perplexity", "dense.perplexity", "sparsity.mlp")),
    "attributes.`Models`",
)
_VIEW = json.dumps({"selectedColumns": _COLUMNS, "columnOrder": _COLUMNS})


def experiment_of(workspace: Workspace, client: "MlflowClient", name: str) -> str:
    """The id of the experiment that results go to; it is made when there is none.

    Raises:
        InputError: it was deleted, or its files are gone.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        made = client.create_experiment(name, artifact_location=artifact_location(workspace))
        _show_as_ours(client, client.get_experiment(made))
        return str(made)
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
    _show_as_ours(client, found)
    return str(found.experiment_id)


def experiment_page(address: str, experiment: str) -> str:
    """The table of runs in MLflow's pages, with the columns that tell results apart.

    Args:
        address: of a tracking server, without credentials.
        experiment: its id.
    """
    # MLflow's pages begin with GenAI, whatever kind the experiment is of, unless the address says otherwise.
    runs = f"{address.rstrip('/')}/#/experiments/{experiment}/runs"
    return f"{runs}?viewStateShareKey={VIEW}&workflowType=machine_learning"


def _show_as_ours(client: "MlflowClient", experiment: "Experiment") -> None:
    """Set what the pages go by. What somebody has chosen or written stays."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE  # an experiment's has the same name

    page = experiment_page("", experiment.experiment_id).lstrip("/")
    note = (
        "One run for each registered result of `dass run`, and those that failed. "
        f"[The runs with method, pattern, sparsity and ratio as columns]({page}). "
        "A run's description says what was made and how to load, serve and verify it."
    )
    [(kind, models)] = KIND.items()
    chosen = experiment.tags.get(kind, "")
    wanted = {f"mlflow.sharedViewState.{VIEW}": _VIEW}
    if not chosen or chosen.endswith(_GUESSED):
        wanted[kind] = models
    if MLFLOW_RUN_NOTE not in experiment.tags:
        wanted[MLFLOW_RUN_NOTE] = note
    for key, value in wanted.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
