"""The folder that is registered: what it holds, and that nothing of it can change unseen."""

import random
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow.models import Model

from dass.errors import InputError
from dass.files import read_json, sha256_file
from tasks.registry.checked import checked_version
from tasks.registry.key_file import fingerprint, public_key
from tasks.registry.registration import register
from tasks.registry.signing import SignatureError, check
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import (
    BOM,
    EVALUATION,
    MANIFEST,
    MASKS,
    SETTINGS,
    SIGNATURE,
    STATISTICS,
    VERSION,
    version_folder,
)
from tasks.registry.versions import find_version
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings
from tests.workspaces import change_settings, copy_workspace, prune_again

PROVENANCE: dict[str, Any] = {
    "git_commit": "0123abc",
    "git_dirty": False,
    "dvc": {"artifacts/base": "aa.dir"},
    "seconds": {},
}
REGISTRATION = "7" * 64
RECORDS = {"README.md", BOM, MANIFEST, MASKS, STATISTICS, EVALUATION, SETTINGS, VERSION, SIGNATURE}
OF_MLFLOW = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_with_a_checkpoint_it_holds_that_and_the_records(finished: Workspace, settings: Settings) -> None:
    with version_folder(finished, settings, PROVENANCE, REGISTRATION) as folder:
        check(folder, public_key())
        tokenizer = {name for name in names_in(folder) if name.startswith("components/tokenizer/")}
        assert "components/tokenizer/tokenizer.json" in tokenizer
        checkpoint = {f"model/{path.name}" for path in finished.pruned.iterdir()}
        assert names_in(folder) == RECORDS | OF_MLFLOW | checkpoint | tokenizer
        for path in finished.pruned.iterdir():
            assert (folder / "model" / path.name).read_bytes() == path.read_bytes()
        weights = folder / "model" / "model.safetensors"
        assert weights.samefile(finished.pruned / "model.safetensors")  # a link: not copied
        model = Model.load(folder)
        assert model.model_size_bytes > weights.stat().st_size
        assert model.flavors["transformers"]["source_model_name"] == "tiny"
        # transformers before 5 know no TokenizersBackend, which is what MLflow saves and names.
        assert model.flavors["transformers"]["tokenizer_type"] == "AutoTokenizer"
        assert read_json(folder / "model/tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
        for name in tokenizer:
            assert (folder / name).read_bytes() == (folder / "model" / Path(name).name).read_bytes()
        assert str(finished.root) not in (folder / "MLmodel").read_text(encoding="utf-8")
    assert not folder.exists()
    assert (finished.pruned / "model.safetensors").is_file()


def test_with_masks_it_holds_no_weights(finished: Workspace) -> None:
    with version_folder(
        finished, change_settings(finished, register__artifact="masks"), PROVENANCE, REGISTRATION
    ) as folder:
        check(folder, public_key())
        assert names_in(folder) == RECORDS | OF_MLFLOW
        assert Model.load(folder).flavors["python_function"]["loader_module"] == "tasks.registry.flavour"
        assert read_json(folder / VERSION)["checkpoint"] is None


def test_the_records_are_those_of_the_workspace(finished: Workspace, settings: Settings) -> None:
    with version_folder(finished, settings, PROVENANCE, REGISTRATION) as folder:
        assert sha256_file(folder / MANIFEST) == sha256_file(finished.masks / "manifest.json")
        assert sha256_file(folder / MASKS) == sha256_file(finished.masks / "masks.safetensors")
        assert sha256_file(folder / STATISTICS) == sha256_file(finished.masks / "statistics.safetensors")
        assert sha256_file(folder / EVALUATION) == sha256_file(finished.metrics / "evaluation.json")
        assert Settings.model_validate(read_json(folder / SETTINGS)) == settings
        evaluated = read_json(finished.evaluation / "dense.json")
        said = read_json(folder / VERSION)
        assert {each["name"] for each in said.pop("libraries")} >= {"torch", "transformers", "safetensors", "mlflow"}
        assert said == {
            "format": "dass-version-2",
            "model": "tiny",
            "registration": REGISTRATION,
            "manifest": sha256_file(finished.masks / "manifest.json"),
            "artifact": "checkpoint",
            "checkpoint": "model",
            "key": fingerprint(public_key()),
            "dass": version("dass"),
            "git": {"commit": "0123abc", "dirty": False},
            "dvc": {"artifacts/base": "aa.dir"},
            "architecture": {"family": "llama", "class": "LlamaForCausalLM"},
            "weights": {"model.safetensors": sha256_file(finished.pruned / "model.safetensors")},
            "evaluated_on": {"evaluation": {**evaluated["source"], "digest": evaluated["digest"]}},
        }


def test_the_bill_of_materials_has_the_same_bytes_again(finished: Workspace, settings: Settings) -> None:
    written = []
    for _ in range(2):
        with version_folder(finished, settings, PROVENANCE, REGISTRATION) as folder:
            written.append((folder / BOM).read_bytes())
    assert written[0] == written[1]


def test_updates_come_along(finished: Workspace) -> None:
    workspace = finished
    settings = prune_again(workspace, prune__method="sparsegpt", register__artifact="masks")
    with version_folder(workspace, settings, PROVENANCE, REGISTRATION) as folder:
        updates = {f"dass/updates/{path.name}" for path in (workspace.masks / "updates").iterdir()}
        assert updates
        assert names_in(folder) == RECORDS | OF_MLFLOW | updates


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_flipped_byte_in_any_file_is_caught(finished: Workspace, tmp_path: Path, artifact: str) -> None:
    draw = random.Random(1)
    with version_folder(
        finished, change_settings(finished, register__artifact=artifact), PROVENANCE, REGISTRATION
    ) as folder:
        copied = shutil.copytree(folder, tmp_path / "version")
    for name in sorted(names_in(copied)):
        before = (copied / name).read_bytes()
        for place in {0, len(before) - 1, draw.randrange(len(before))}:
            (copied / name).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            with pytest.raises(SignatureError, match=name):
                check(copied, public_key())
        (copied / name).write_bytes(before)
    check(copied, public_key())


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_what_mlflow_keeps_is_what_was_signed(finished: Workspace, artifact: str) -> None:
    made = register(finished, change_settings(finished, register__artifact=artifact), PROVENANCE)
    with tracking(finished) as client:
        version = find_version(client, "tiny", made.version)
        assert version.tags["artifact"] == artifact
        assert (version.tags["method"], version.tags["pattern"]) == ("dass", "unstructured")
        with checked_version(client, "tiny", made.version).folder() as folder:
            said = read_json(folder / VERSION)
            assert (said["model"], said["manifest"]) == ("tiny", sha256_file(folder / MANIFEST))
            assert said["key"] == fingerprint(public_key())
            assert ("model/model.safetensors" in names_in(folder)) == (artifact == "checkpoint")


def test_another_artifact_is_another_version(finished: Workspace, settings: Settings) -> None:
    first = register(finished, settings, PROVENANCE)
    masks_only = change_settings(finished, register__artifact="masks")
    second = register(finished, masks_only, PROVENANCE)
    assert (first.version, second.version, second.created) == ("1", "2", True)
    assert not register(finished, masks_only, PROVENANCE).created


def test_an_unusable_key_stops_before_anything_is_written(
    finished: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_text("no key", encoding="utf-8")
    (tmp_path / "key.pem").chmod(0o600)
    monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "key.pem"))
    with pytest.raises(InputError, match="key.pem is no PEM private key"):
        register(finished, settings, PROVENANCE)
    with tracking(finished) as client:
        assert client.search_registered_models() == []


def test_an_unknown_artifact_is_refused(finished: Workspace) -> None:
    with pytest.raises(InputError, match="register.artifact is 'both': expected 'checkpoint' or 'masks'"):
        change_settings(finished, register__artifact="both")


def test_the_workspace_may_lie_anywhere(finished_template: Workspace, tmp_path: Path) -> None:
    workspace = copy_workspace(finished_template, tmp_path / "größer #1 50%20 & 'more'")
    with version_folder(workspace, load_settings(workspace.params), PROVENANCE, REGISTRATION) as folder:
        check(folder, public_key())
