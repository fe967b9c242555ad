"""Versions as models: with their checkpoint, and as base × masks with the base found, given or fetched again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

import dass
from dass.errors import InputError
from dass.files import read_json, sha256_file, write_json
from tasks.registry.loading import base_of, load, materialize_version, opened
from tasks.registry.registration import register
from tasks.registry.signing import SignatureError
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import MANIFEST, MASKS, UPDATES, VERSION, version_folder
from tasks.sources.base import fetch_base
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.models import save_tiny_checkpoint
from tests.workspaces import STAGES, change_settings, prune_again, start_workspace

PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}
REGISTRATION = "7" * 64


@pytest.fixture
def masks_only(finished: Workspace, tmp_path: Path) -> Path:
    """A masks-only version folder outside its workspace."""
    with version_folder(
        finished, change_settings(finished, register__artifact="masks"), PROVENANCE, REGISTRATION
    ) as folder:
        return shutil.copytree(folder, tmp_path / "masks-only")


@pytest.fixture
def inside(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The finished workspace as the current folder."""
    (finished.root / "dvc.yaml").touch()
    (finished.root / ".dvc").mkdir(exist_ok=True)
    monkeypatch.chdir(finished.root)
    return finished


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in ours
    )


def test_masks_only_materialises_to_the_very_bytes_of_the_pruned_checkpoint(
    finished: Workspace, masks_only: Path, tmp_path: Path
) -> None:
    materialize_version(masks_only, tmp_path / "full", base=finished.base)
    told = {name: sha256_file(masks_only / name) for name in ("README.md", "bom.cdx.json")}
    assert digests(tmp_path / "full") == digests(finished.pruned) | told


@pytest.fixture(scope="module")
def with_terms(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A result of a model with terms and a card."""
    workspace, _ = start_workspace(tmp_path_factory.mktemp("terms"))
    (workspace.root / "model" / "LICENSE.md").write_text("the terms", encoding="utf-8")
    (workspace.root / "model" / "README.md").write_text("the dense model's card", encoding="utf-8")
    settings = change_settings(workspace)
    for stage in STAGES:
        stage(workspace, settings)
    return workspace


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_card_and_licence_come_along_and_no_record_of_the_base(
    with_terms: Workspace, tmp_path: Path, artifact: str
) -> None:
    workspace, settings = with_terms, change_settings(with_terms, register__artifact=artifact)
    with version_folder(workspace, settings, PROVENANCE, REGISTRATION) as folder:
        materialize_version(folder, tmp_path / "full", ws=workspace)
        assert (tmp_path / "full" / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    assert (tmp_path / "full" / "LICENSE.md").read_text(encoding="utf-8") == "the terms"
    assert read_json(tmp_path / "full" / "dass.json")["settings"] == settings.prune.plan.named
    assert not (tmp_path / "full" / "source.json").exists()


def test_masks_only_loads_bit_identical_to_the_materialised_checkpoint(
    finished: Workspace, masks_only: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    materialize_version(masks_only, tmp_path / "full", base=finished.base)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype="auto")
    assert same_weights(load(masks_only, base=finished.base), written)


def test_updated_weights_come_back_too(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished
    settings = prune_again(workspace, prune__method="sparsegpt", register__artifact="masks")
    with version_folder(workspace, settings, PROVENANCE, REGISTRATION) as folder:
        materialize_version(folder, tmp_path / "full", ws=workspace)
        assert digests(tmp_path / "full").items() >= digests(workspace.pruned).items()
        first = min((folder / UPDATES).iterdir())
        first.unlink()
        with pytest.raises(InputError, match="updates does not hold the updates that the manifest names"):
            materialize_version(folder, tmp_path / "other", ws=workspace)
    assert not (tmp_path / "other").exists()


def test_a_version_with_a_checkpoint_needs_no_base(finished: Workspace, settings: Settings, tmp_path: Path) -> None:
    with version_folder(finished, settings, PROVENANCE, REGISTRATION) as folder:
        shutil.rmtree(finished.base)
        materialize_version(folder, tmp_path / "full")
        loaded = load(folder)
    assert digests(tmp_path / "full").items() >= digests(finished.pruned).items()
    assert same_weights(loaded, load_checkpoint(finished.pruned))


def load_checkpoint(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_registered_version_loads_by_alias_and_by_number(inside: Workspace, artifact: str) -> None:
    made = register(inside, change_settings(inside, register__artifact=artifact), PROVENANCE)
    expected = load_checkpoint(inside.pruned)
    assert same_weights(dass.load("models:/tiny@challenger"), expected)
    assert same_weights(dass.load(f"models:/tiny/{made.version}"), expected)


def test_the_registry_may_be_another_than_the_current_folders(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(finished, change_settings(finished, register__artifact="masks"), PROVENANCE)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="is not a workspace"):
        load("models:/tiny@challenger")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.root / 'mlflow.db'}")
    assert same_weights(load("models:/tiny@challenger", base=finished.base), load_checkpoint(finished.pruned))
    with pytest.raises(InputError, match=r"cannot be fetched from \./model"):
        load("models:/tiny@challenger")


def test_mlflow_itself_loads_a_masks_only_version(inside: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = register(inside, change_settings(inside, register__artifact="masks"), PROVENANCE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/tiny@challenger")
    texts = model.predict(["the model", "of its weights"])
    assert [text[:9] for text in texts] == ["the model", "of its we"]
    with opened("models:/tiny@challenger") as folder:  # what MLflow left there is no difference
        assert (folder / "registered_model_meta").exists()


def test_the_text_generator_takes_what_mlflow_gives(masks_only: Path, inside: Workspace) -> None:
    import pandas

    from tasks.registry.flavour import _load_pyfunc

    generator = _load_pyfunc(str(masks_only))
    [text] = generator.predict("the model", {"max_new_tokens": 2, "do_sample": False})
    assert text.startswith("the model")
    frame = pandas.DataFrame({"prompt": ["the model"]})
    assert generator.predict(frame, {"max_new_tokens": 2, "do_sample": False}) == [text]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_changed_registered_version_does_not_load(inside: Workspace, artifact: str) -> None:
    register(inside, change_settings(inside, register__artifact=artifact), PROVENANCE)
    [stored] = (inside.root / "mlartifacts").rglob(MASKS)
    flip(stored)
    with pytest.raises(SignatureError, match=r"dass/masks\.safetensors in .* differs"):
        load("models:/tiny@challenger")


def test_a_version_that_others_made_does_not_load(inside: Workspace, settings: Settings) -> None:
    register(inside, settings, PROVENANCE)
    with tracking(inside) as client:
        made = client.get_model_version("tiny", "1")
        client.create_model_version("tiny", made.source, made.run_id, tags={"ledger.head": "pending"})
    with pytest.raises(SignatureError, match="tiny version 2 is not in the ledger"):
        load("models:/tiny/2")


@pytest.mark.parametrize("uri", ["models:/tiny", "models:/tiny/champion", "models:/tiny@3", "models:/@x", "models:/"])
def test_a_uri_without_a_version_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="names no version: expected models:/NAME@ALIAS"):
        load(uri)


def test_a_version_that_does_not_exist_is_told(inside: Workspace, settings: Settings) -> None:
    register(inside, settings, PROVENANCE)
    with pytest.raises(InputError, match="tiny has no version or alias 'champion'"):
        load("models:/tiny@champion")
    with pytest.raises(InputError, match="MLflow has no model 'huge'"):
        load("models:/huge/1")


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    record = read_json(folder / name)
    change(record)
    write_json(folder / name, record)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / VERSION).unlink(), "is no version folder: it has no dass/version.json"),
        (lambda folder: (folder / VERSION).write_text("{"), "version.json is damaged: it is not JSON"),
        (lambda folder: (folder / VERSION).write_text("[]"), "version.json is damaged: expected an object"),
        (lambda folder: edit(folder, VERSION, lambda record: record.update(format="x")), "has format 'x'"),
        (lambda folder: edit(folder, VERSION, lambda record: record.update(checkpoint="../..")), "names '../..'"),
        (lambda folder: edit(folder, MANIFEST, lambda record: record["masks"].update(digest="0")), "other masks"),
        (
            lambda folder: edit(folder, MANIFEST, lambda record: record["base"]["files"].update({"../x": "0"})),
            "names '../x' as a file of the base",
        ),
    ],
)
def test_a_folder_that_is_no_version_is_refused(
    masks_only: Path, finished: Workspace, tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    change(masks_only)
    with pytest.raises(InputError, match=told):
        materialize_version(masks_only, tmp_path / "full", base=finished.base)
    assert not (tmp_path / "full").exists()


def test_a_link_in_a_version_is_refused(masks_only: Path, tmp_path: Path) -> None:
    (masks_only / "dass" / "more").symlink_to("/etc/passwd")
    with pytest.raises(SignatureError, match="dass/more in .* is a symlink to /etc/passwd"):
        materialize_version(masks_only, tmp_path / "full")


def test_a_target_that_holds_something_is_refused(finished: Workspace, masks_only: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    materialize_version(masks_only, tmp_path / "full", base=finished.base)  # empty is well
    with pytest.raises(InputError, match="full exists and is not empty"):
        materialize_version(masks_only, tmp_path / "full", base=finished.base)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("artifacts/pruned-again", "lies inside the workspace's artifacts"),
        (".dass/out", r"lies inside the workspace's \.dass"),
        (".", "holds the workspace's artifacts"),
        ("../masks-only/full", "lies inside the version"),
        ("artifacts/base/full", "lies inside the workspace's artifacts"),
        ("params.yaml", "is no folder"),
        ("params.yaml/full", "cannot be written"),
    ],
)
def test_a_target_among_files_that_are_kept_is_refused(
    finished: Workspace, masks_only: Path, target: str, told: str
) -> None:
    before = names_below(finished.root)
    with pytest.raises(InputError, match=told):
        materialize_version(masks_only, finished.root / target, ws=finished)
    assert names_below(finished.root) == before


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_another_base_is_refused_with_both_digests(finished: Workspace, masks_only: Path, tmp_path: Path) -> None:
    manifest = read_json(masks_only / MANIFEST)
    other = save_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(InputError) as told, base_of(finished, manifest, other):
        pass
    assert f"digest {manifest['base']['digest']}, and {other} has " in str(told.value)
    assert "\n" not in str(told.value)


def test_a_changed_base_in_the_workspace_is_fetched_again(finished: Workspace, masks_only: Path) -> None:
    flip(finished.base / "model.safetensors")
    manifest = read_json(masks_only / MANIFEST)
    with base_of(finished, manifest) as base:
        assert digests(base) == manifest["base"]["files"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_base_that_is_gone_is_fetched_again_in_its_dtype(tmp_path: Path, dtype: str) -> None:
    workspace, settings = start_workspace(tmp_path / "typed", sources__dtype=dtype)
    fetch_base(workspace, settings)
    manifest = {"base": read_json(workspace.base / "source.json")}
    shutil.rmtree(workspace.base)
    with base_of(workspace, manifest) as base:
        assert digests(base) == manifest["base"]["files"]


def test_a_source_that_changed_is_refused_with_both_digests(finished: Workspace, masks_only: Path) -> None:
    shutil.rmtree(finished.base)
    flip(finished.root / "model" / "model.safetensors")
    manifest = read_json(masks_only / MANIFEST)
    with pytest.raises(InputError, match=r"\./model has [0-9a-f]{64} now") as told, base_of(finished, manifest):
        pass
    assert manifest["base"]["digest"] in str(told.value)


def test_a_version_s_own_code_is_never_run_and_nobody_is_asked(
    finished: Workspace, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with version_folder(finished, settings, PROVENANCE, REGISTRATION) as made:
        folder = shutil.copytree(made, tmp_path / "version")
    model = folder / "model"
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = read_json(model / "config.json")
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    write_json(model / "config.json", {**config, "auto_map": own})
    load(folder)  # an architecture that transformers has: its own class
    write_json(model / "config.json", {**config, "auto_map": own, "model_type": "evil"})
    with pytest.raises(InputError, match="does not read this 'evil' config without code of its own"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_version_whose_weights_transformers_would_make_up_is_refused(
    finished: Workspace, settings: Settings, tmp_path: Path
) -> None:
    with version_folder(finished, settings, PROVENANCE, REGISTRATION) as made:
        folder = shutil.copytree(made, tmp_path / "version")
    config = read_json(folder / "model" / "config.json")
    write_json(folder / "model" / "config.json", {**config, "tie_word_embeddings": False})
    with pytest.raises(InputError, match=r"does not hold lm_head\.weight \(1 of LlamaForCausalLM"):
        load(folder)
