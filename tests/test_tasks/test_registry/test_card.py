"""The model card: what a version is, in the form the hub reads."""

from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from dass.files import read_json
from tasks.registry.card import card, numbered
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

VERSION: dict[str, Any] = {
    "artifact": "checkpoint",
    "key": "ab" * 32,
    "git": {"commit": "c" * 40, "dirty": False},
    "dvc": {},
    "evaluated_on": {"evaluation": {"uri": "./held_out.txt", "sha256": "ef" * 32, "digest": "01" * 32}},
}


@pytest.fixture
def records(finished: Workspace) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest: dict[str, Any] = read_json(finished.masks / "manifest.json")
    return manifest, read_json(finished.metrics / "evaluation.json")


def text_of(records: tuple[dict[str, Any], dict[str, Any]], settings: Settings, **changes: Any) -> str:
    return card(*records, {"tasks": {}}, settings, {**VERSION, **changes}, {"trained": False})


def test_it_holds_what_the_hub_reads(records: Any, settings: Settings) -> None:
    records[0]["base"] |= {"license": "apache-2.0", "uri": "org/name@main"}
    data = ModelCard(text_of(records, settings)).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "org/name"
    assert data["library_name"] == "transformers"
    assert data["base_model_relation"] == "finetune"
    assert data["tags"] == ["pruned", "sparse", "unstructured-sparsity", "dass"]


def test_the_hub_s_own_reader_finds_each_figure_with_what_it_was_measured_on(records: Any, settings: Settings) -> None:
    tasks = {
        "settings": {"versions": {"lm_eval": "0.4.13"}},
        "tasks": {
            "arc_easy": {
                "documents": 8,
                "num_fewshot": 0,
                "dense": {"acc": 0.75, "acc_stderr": 0.1},
                "pruned": {"acc": 0.5, "acc_stderr": 0.1},
                "difference": {
                    "acc": {"value": -0.25, "interval": [-0.5, 0.0], "lost": 2, "gained": 0, "mcnemar_p": 1.0}
                },
            }
        },
    }
    manifest, evaluation = records
    data = ModelCard(card(manifest, evaluation, tasks, settings, VERSION, {"trained": False})).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is not None
    found = {(each.dataset_name, each.metric_type): each for each in data.eval_results}
    perplexity = found["held_out.txt", "perplexity"]
    assert perplexity.metric_value == records[1]["pruned"]["perplexity"]
    assert perplexity.dataset_args == {"context_length": 32, "sha256": "ef" * 32}
    assert found["held_out.txt", "perplexity_ratio"].metric_value == records[1]["ratio"]
    assert found["arc_easy", "acc"].metric_value == 0.5
    assert data.model_name == "tiny"
    assert len(found) == len(data.eval_results) == 3


def test_a_base_that_is_not_on_the_hub_is_not_named_as_if_it_were(records: Any, settings: Settings) -> None:
    assert not {"base_model", "base_model_relation"} & ModelCard(text_of(records, settings)).data.to_dict().keys()


def test_a_licence_nobody_named_is_not_invented(records: Any, settings: Settings) -> None:
    text = text_of(records, settings)
    assert ModelCard(text).data.to_dict()["license"] == "unknown"
    assert "see there" in text


def test_results_name_their_context_length(records: Any, settings: Settings) -> None:
    text = text_of(records, settings)
    assert f"| ratio | {records[1]['ratio']:.3f} |" in text
    assert "context length 32" in text


def test_equal_results_give_equal_cards(records: Any, settings: Settings) -> None:
    assert text_of(records, settings) == text_of(records, settings)


def test_it_says_which_matrices_a_kernel_can_run(records: Any, settings: Settings) -> None:
    assert "No pruned matrix has the 2:4 groups" in text_of(records, settings)
    for layer in records[0]["layers"]:
        layer["runs_2_4"]["down_proj"] = True
    assert "run 3 of 9 pruned matrices" in text_of(records, settings)


def test_masks_are_loaded_another_way_than_a_checkpoint(records: Any, settings: Settings) -> None:
    assert 'mlflow.transformers.load_model("models:/tiny/VERSION")' in text_of(records, settings)
    assert 'dass.load("models:/tiny/VERSION")' in text_of(records, settings, artifact="masks")


def test_it_says_how_to_verify_and_names_no_alias_that_nobody_has_set(records: Any, settings: Settings) -> None:
    text = text_of(records, settings)
    assert "dass verify VERSION --replay" in text
    assert "@champion" not in text


def test_once_the_registry_has_given_a_number_the_commands_name_it(records: Any, settings: Settings) -> None:
    text = numbered(text_of(records, settings), "tiny", "7")
    for words in ('dass.load("models:/tiny/7")', "dass verify 7 --replay", "mlflow models serve -m models:/tiny/7 "):
        assert words in text, words
    assert "VERSION" not in text
