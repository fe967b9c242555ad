"""The bill of materials: valid CycloneDX, true to the records, the same bytes again."""

import json
from copy import deepcopy
from importlib.metadata import version as version_of
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from dass.files import read_json
from tasks.registry.bom import bill_of_materials, bom_text, told
from tasks.registry.libraries import installed_libraries
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

TASKS: dict[str, Any] = {
    "tasks": {
        "arc_easy": {
            "documents": 8,
            "version": 1.0,
            "data": {"test": "ab" * 32},
            "dense": {"acc": 0.75},
            "pruned": {"acc": 0.5},
            "difference": {"acc": {"value": -0.25, "interval": [-0.5, 0.0]}},
        }
    }
}
Records = dict[str, Any]


@pytest.fixture
def records(finished: Workspace, settings: Settings) -> Records:
    """What `bill_of_materials` takes, of a finished workspace."""
    dense = read_json(finished.evaluation / "dense.json")
    return {
        "manifest": read_json(finished.masks / "manifest.json"),
        "evaluation": read_json(finished.metrics / "evaluation.json"),
        "tasks": deepcopy(TASKS),
        "settings": settings.model_dump(mode="json", by_alias=True),
        "version": {
            "model": "tiny",
            "registration": "7" * 64,
            "manifest": "8" * 64,
            "artifact": "checkpoint",
            "key": "ab" * 32,
            "dass": "0.1.0",
            "git": {"commit": "0123abc", "dirty": False},
            "architecture": {"family": "llama", "class": "LlamaForCausalLM"},
            "weights": {"model.safetensors": "cd" * 32},
            "evaluated_on": {"evaluation": {**dense["source"], "digest": dense["digest"]}},
            "libraries": installed_libraries(),
        },
        "recovery": {"trained": False},
    }


def by_ref(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {component["bom-ref"]: component for component in document["components"]}


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in component["properties"]}


def base_of(document: dict[str, Any]) -> dict[str, Any]:
    (base,) = document["metadata"]["component"]["pedigree"]["ancestors"]
    found: dict[str, Any] = base
    return found


def test_it_is_valid_cyclonedx(records: Records) -> None:
    records["recovery"] = {  # everything that may be in it
        "trained": True,
        "settings": {"train": "norms"},
        "steps": 2,
        "best_step": 1,
        "tokens": 128,
        "held_back": None,
        "updates": {"digest": "09" * 32},
        "text": {
            "drawn": True,
            "source": {"uri": ["pypi://x==1/a", "pypi://x==1/b"], "sha256": "ff" * 32},
            "texts": {},
            "digest": "e",
        },
    }
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    document = bill_of_materials(**records)
    assert validator.validate_str(bom_text(document)) is None
    assert {"data/recovery", "data/task/arc_easy", "data/calibration", "data/evaluation"} <= by_ref(document).keys()
    document["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "pruned"
    assert validator.validate_str(bom_text(document)) is not None


def test_equal_records_give_equal_bytes_and_no_time(records: Records) -> None:
    texts = {bom_text(bill_of_materials(**deepcopy(records))) for _ in range(2)}
    assert len(texts) == 1
    assert "timestamp" not in texts.pop()
    records["version"]["registration"] = "9" * 64
    assert bill_of_materials(**records)["serialNumber"].startswith("urn:uuid:")


def test_the_model_descends_from_its_base(records: Records) -> None:
    records["manifest"]["base"] |= {"license": "apache-2.0", "uri": "org/name@main", "revision": "5" * 40}
    document = bill_of_materials(**records)
    model, base = document["metadata"]["component"], base_of(document)
    assert model["type"] == base["type"] == "machine-learning-model"
    assert (model["name"], model["version"]) == ("tiny", "777777777777")
    assert model["licenses"] == base["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert base["purl"] == f"pkg:huggingface/org/name@{'5' * 40}"
    assert properties(base)["dass:digest"] == records["manifest"]["base"]["digest"]
    files = records["manifest"]["base"]["files"]
    (weights,) = base["components"]
    assert weights["hashes"] == [{"alg": "SHA-256", "content": files["model.safetensors"]}]
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "cd" * 32}]
    assert properties(model)["dass:masks.digest"] == records["manifest"]["masks"]["digest"]
    assert properties(model)["dass:setting.prune.alpha"] == "0.5"


def test_a_licence_that_spdx_does_not_list_is_named_and_one_nobody_named_is_not_invented(records: Records) -> None:
    records["manifest"]["base"]["license"] = "gemma"
    assert base_of(bill_of_materials(**records))["licenses"] == [{"license": {"name": "gemma"}}]
    records["manifest"]["base"]["license"] = None
    assert "licenses" not in base_of(bill_of_materials(**records))


def test_a_base_out_of_a_wheel_has_the_file_s_digest(records: Records) -> None:
    records["manifest"]["base"] |= {"uri": "pypi://llm-x==0.1.2/llm_x/model.gguf", "sha256": "12" * 32}
    base = base_of(bill_of_materials(**records))
    assert base["purl"] == "pkg:pypi/llm-x@0.1.2#llm_x/model.gguf"
    assert base["hashes"] == [{"alg": "SHA-256", "content": "12" * 32}]


def test_data_sets_have_the_digests_of_what_was_read_and_of_its_tokens(records: Records) -> None:
    found = by_ref(bill_of_materials(**records))
    manifest, evaluated = records["manifest"], records["version"]["evaluated_on"]["evaluation"]
    for role, source, digest in (
        ("calibration", manifest["calibration"]["source"], manifest["calibration"]["digest"]),
        ("evaluation", evaluated, evaluated["digest"]),
    ):
        data = found[f"data/{role}"]
        assert data["type"] == "data"
        assert data["hashes"] == [{"alg": "SHA-256", "content": source["sha256"]}]
        assert properties(data)["dass:tokens.digest"] == digest
    assert properties(found["data/task/arc_easy"])["dass:test.sha256"] == "ab" * 32


def test_the_model_s_own_text_is_no_file(records: Records) -> None:
    records["manifest"]["calibration"]["source"] = {"uri": "self", "sha256": "00" * 32, "windows": 6}
    data = by_ref(bill_of_materials(**records))["data/calibration"]
    assert "hashes" not in data
    assert data["name"] == "text of the base model's own"


def test_libraries_are_those_installed_here_and_what_they_need(records: Records) -> None:
    document = bill_of_materials(**records)
    names = {each["name"]: each["version"] for each in document["components"] if each["type"] == "library"}
    assert names["torch"] == version_of("torch")
    assert {"transformers", "mlflow", "sqlalchemy"} <= names.keys()  # the last: of mlflow's
    assert not {"dass", "pytest", "ruff", "optuna"} & names.keys()
    reference = f"pkg:pypi/transformers@{version_of('transformers')}"
    (needs,) = (each["dependsOn"] for each in document["dependencies"] if each["ref"] == "model")
    assert by_ref(document)[reference]["purl"] == reference
    assert {reference, "data/calibration"} <= set(needs)
    assert f"{len(names)} libraries" in told(document)


def test_figures_are_those_of_the_records(records: Records) -> None:
    card = bill_of_materials(**records)["metadata"]["component"]["modelCard"]
    metrics = {(each["type"], each["slice"]): each for each in card["quantitativeAnalysis"]["performanceMetrics"]}
    evaluation = records["evaluation"]
    ratio = metrics["perplexity ratio", "evaluation, context length 32"]
    assert float(ratio["value"]) == evaluation["ratio"]
    assert [float(ratio["confidenceInterval"][each]) for each in ("lowerBound", "upperBound")] == (
        evaluation["interval"]["ratio"]
    )
    assert (
        float(metrics["perplexity", "evaluation, context length 32, pruned"]["value"])
        == (evaluation["pruned"]["perplexity"])
    )
    assert metrics["acc", "arc_easy, pruned"]["value"] == "0.5"
    assert card["modelParameters"]["datasets"][0] == {"ref": "data/calibration"}
    assert card["considerations"]["performanceTradeoffs"]


def test_a_login_in_an_address_is_not_in_it(records: Records) -> None:
    records["manifest"]["base"]["uri"] = "https://user:verysecret@host/model?token=alsosecret"
    text = bom_text(bill_of_materials(**records))
    assert "verysecret" not in text
    assert "alsosecret" not in text
    assert json.loads(text)["metadata"]["component"]["pedigree"]["ancestors"][0]["name"] == "model"
