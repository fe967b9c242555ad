"""What MLflow's pages show of a registered result: run, description, experiment, figures."""

import json
import shutil
import time
from typing import Any

import pytest

from dass.files import read_json, write_json
from tasks.registry.description import LONGEST, description
from tasks.registry.registration import Registration, register
from tasks.registry.run_record import run_name
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.models import LAYERS
from tests.test_tasks.test_registry.test_registration import PROVENANCE, all_models, client_of
from tests.workspaces import change_settings


def test_the_run_records_settings_figures_layers_files_and_datasets(registered: tuple[Workspace, Registration]) -> None:
    finished, made = registered
    client = client_of(finished)
    run = client.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(made.experiment_id).name == "tests"
    assert run.data.params["prune.method"] == "dass"
    assert run.data.params["sources.model.uri"] == "./model"
    assert run.data.params["sources.model.sha256"] == "null"
    assert run.data.params["calibration.samples"] == "6"
    assert run.data.params["context_length"] == "32"  # nothing that was measured
    assert "context_length" not in run.data.metrics

    evaluation, manifest = read_json(finished.metrics / "evaluation.json"), read_json(finished.masks / "manifest.json")
    assert run.data.metrics["ratio"] == evaluation["ratio"]
    assert run.data.metrics["dense.perplexity"] == evaluation["dense"]["perplexity"]
    assert run.data.metrics["sparsity.model"] == evaluation["sparsity"]["model"]
    assert run.data.metrics["seconds.prune"] == 1.5
    errors = client.get_metric_history(made.run_id, "layer.relative_error")
    assert [(metric.step, metric.value) for metric in errors] == [
        (layer["layer"], layer["relative_error"]) for layer in manifest["layers"]
    ]
    for name in ("layer.sparsity.gate_proj", "layer.sparsity.down_proj", "layer.norm.median", "layer.seconds"):
        assert len(client.get_metric_history(made.run_id, name)) == LAYERS

    files = {file.path for file in [*client.list_artifacts(made.run_id), *client.list_artifacts(made.run_id, "plots")]}
    assert files == {
        "digests.json",
        "manifest.json",
        "evaluation.json",
        "settings.json",
        "plots",
        "plots/layers.png",
        "plots/norms.png",
    }

    datasets = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert datasets["calibration"].name == "text.txt"
    assert manifest["calibration"]["digest"].startswith(datasets["calibration"].digest)
    assert datasets["evaluation"].name == "held_out.txt"
    assert read_json(finished.evaluation / "dense.json")["digest"] in datasets["evaluation"].source


def test_the_run_describes_itself_and_names_prefects_run(finished: Workspace, settings: Settings) -> None:
    flow_run = {"id": "0f1e", "name": "brave-owl", "url": "https://prefect.example/flow-runs/flow-run/0f1e"}
    made = register(finished, settings, {**PROVENANCE, "flow_run": flow_run})
    tags = client_of(finished).get_run(made.run_id).data.tags
    assert {name: tags[f"prefect.flow_run_{name}"] for name in flow_run} == flow_run
    described = tags["mlflow.note.content"]
    for words in (
        "| ratio | ",
        "tokens of `./text.txt`",
        "[brave-owl](<https://prefect.example/flow-runs/flow-run/0f1e>), `0f1e`; commit `0123abc`",
        'dass.load("models:/tiny/1")',
        "dass verify 1 --replay",
        "report.html",
    ):
        assert words in described, words
    for words in ("base_model", "## Settings", "VERSION"):
        assert words not in described, words


def test_run_version_and_logged_model_are_named_and_point_at_each_other(
    finished: Workspace, settings: Settings
) -> None:
    before = time.time()
    made = register(finished, settings, {**PROVENANCE, "seconds": {"prune": 100.0, "evaluate": 20.0}})
    client = client_of(finished)
    run, version, [logged] = client.get_run(made.run_id), client.get_model_version("tiny", "1"), all_models(client)
    assert run.info.run_name == "dass 50% #1"
    assert 120 <= (run.info.end_time - run.info.start_time) / 1000 < 120 + time.time() - before + 1
    assert version.description == run.data.tags["mlflow.note.content"]
    assert len(version.description) <= LONGEST
    assert version.source == f"models:/{logged.model_id}"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "tiny", "version": "1"}]
    assert logged.name == "dass 50 percent"


def test_a_description_too_long_for_mlflow_says_where_the_rest_is() -> None:
    card = "---\na: b\n---\n\n# tiny\n\nIt is pruned.\n\n## Results\n\nnone\n\n## More\n\n" + "x" * LONGEST
    told = description(card, {"git_commit": None})
    assert told.startswith("It is pruned.")
    assert told.endswith("The rest is in `README.md` among the version's files.\n")
    assert "## Results" in told
    assert "## More" not in told
    assert len(told) <= LONGEST


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"prune__pattern": "2:4", "prune__layout": "transposable"}, "dass 2:4 transposable"),
        ({"prune__update": "reconstruct", "prune__sparsity": 0.25}, "dass 25% reconstruct"),
        ({"recover__steps": 30, "recover__step_tokens": 32}, "dass 50% recovered 30 steps"),
    ],
)
def test_a_run_is_called_after_what_is_not_as_published(
    finished: Workspace, changes: dict[str, Any], name: str
) -> None:
    assert run_name(change_settings(finished, **changes)) == name


def test_the_experiment_opens_on_its_runs_and_what_somebody_chose_stays(
    finished: Workspace, settings: Settings
) -> None:
    client = client_of(finished)
    made = register(finished, settings, PROVENANCE)
    tags = client.get_experiment(made.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.dass"])
    assert view["selectedColumns"][:2] == ["params.`prune.method`", "params.`prune.pattern`"]
    run = client.get_run(made.run_id).data
    for column in view["selectedColumns"]:
        kind, _, name = column.partition(".")
        assert name.strip("`") in {"params": run.params, "metrics": run.metrics, "attributes": {"Models"}}[kind]
    assert f"#/experiments/{made.experiment_id}/runs?viewStateShareKey=dass" in tags["mlflow.note.content"]
    for kind in ("genai_development", "genai_development_inferred"):
        client.set_experiment_tag(made.experiment_id, "mlflow.experimentKind", kind)
        client.set_experiment_tag(made.experiment_id, "mlflow.note.content", "ours")
        register(finished, change_settings(finished, register__model=kind), PROVENANCE)
        tags = client.get_experiment(made.experiment_id).tags
        assert (tags["mlflow.experimentKind"] == kind) is (kind == "genai_development")
        assert tags["mlflow.note.content"] == "ours"


def test_figures_along_something_have_their_place_as_step_and_any_name_is_taken(
    finished: Workspace, settings: Settings
) -> None:
    measured = read_json(finished.metrics / "evaluation.json")
    bands = [{"from": 1, "to": 3, "kl": 0.5}, {"from": 4, "to": None, "kl": 0.25}]
    measured["divergence"] |= {"kl": 0.25, "by_position": bands, "by_frequency": []}
    measured["texts"] = {"code / ../ <é>": {**measured, "ratio": 2.0, "texts": {}}}
    write_json(finished.metrics / "evaluation.json", measured)
    made = register(finished, settings, PROVENANCE)
    client = client_of(finished)
    metrics = client.get_run(made.run_id).data.metrics
    assert metrics["divergence.kl"] == 0.25
    assert metrics["texts.code _ .._ ___.ratio"] == 2.0
    assert "interval.ratio" not in metrics
    along = client.get_metric_history(made.run_id, "divergence.by_position.kl")
    assert sorted((each.step, each.value) for each in along) == [(1, 0.5), (4, 0.25)]


def test_masks_restored_from_a_cache_register_without_seconds(finished: Workspace, settings: Settings) -> None:
    shutil.rmtree(finished.private)
    made = register(finished, settings, PROVENANCE)
    client = client_of(finished)
    assert client.get_metric_history(made.run_id, "layer.seconds") == []
    assert len(client.get_metric_history(made.run_id, "layer.relative_error")) == LAYERS


def test_models_can_be_searched_by_figure(registered: tuple[Workspace, Registration]) -> None:
    finished, made = registered
    found = client_of(finished).search_logged_models(
        [made.experiment_id], "metrics.ratio > 0 AND params.sparsity = '0.5'"
    )
    assert len(found) == 1


def test_the_git_remote_and_its_token_are_not_recorded(registered: tuple[Workspace, Registration]) -> None:
    finished, made = registered
    client = client_of(finished)
    names = {*client.get_run(made.run_id).data.tags, *all_models(client)[0].tags}
    known = ("git_commit", "git_dirty", "mlflow.source.git.commit")
    assert not [name for name in names if "git" in name.lower() and name not in known]
