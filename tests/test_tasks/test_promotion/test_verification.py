"""A version is proved step by step, and whatever was tampered with is named."""

import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dass.errors import InputError, UnavailableError
from dass.files import read_json, write_json
from dass.masks.mask_file import MaskFile, save_masks
from dass.masks.updates import save_updates, updates_in
from tasks.promotion.proof import Proof, take_step
from tasks.promotion.proof_steps import check_ledger
from tasks.promotion.verification import verify_all, verify_folder, verify_named, verify_version
from tasks.pruning.stages import prune
from tasks.registry import signing
from tasks.registry.entry import parse
from tasks.registry.loading import checkpoint_of
from tasks.registry.registration import register
from tasks.registry.tracking import TrackingError, tracking
from tasks.registry.version_folder import MANIFEST, MASKS
from tasks.registry.versions import find_version, folder_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.flips import check_flips_are_caught
from tests.flips import put as put_bytes
from tests.workspaces import STAGES, change_settings, copy_workspace, prune_again

PROVENANCE: dict[str, Any] = {
    "git_commit": "0123abc",
    "git_dirty": False,
    "dvc": {"artifacts/base": "aa.dir", "artifacts/calibration": "bb.dir"},
    "seconds": {},
}
GATE = "model.layers.1.mlp.gate_proj.weight"
WEIGHTS = "model/model.safetensors"
STEPS = ["files", "ledger", "weights", "pattern", "configuration"]


@pytest.fixture(scope="module")
def template(results: list[Workspace], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One version is registered."""
    workspace = copy_workspace(results[1], tmp_path_factory.mktemp("registered") / "ws")
    settings = change_settings(workspace, prune__pattern="2:4")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(workspace, settings, PROVENANCE)
    return workspace


@pytest.fixture
def ws(template: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The registered workspace; its version's files and its database are as before when the test ends.

    Not a copy: MLflow's records hold absolute paths. Nobody remembers what an earlier test wrote to the ledger.
    """
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    kept = template.root / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    shutil.copytree(template.root / "mlartifacts", kept / "mlartifacts")
    shutil.copy(template.root / "mlflow.db", kept)
    yield template
    shutil.rmtree(template.root / "mlartifacts")
    (kept / "mlartifacts").rename(template.root / "mlartifacts")
    shutil.copy(kept / "mlflow.db", template.root)


@contextmanager
def stored(ws: Workspace, version: str = "1") -> Iterator[Path]:
    """The version's folder in the store itself."""
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", version)) as folder:
        assert folder.is_relative_to(ws.root)
        yield folder


def prove(ws: Workspace, version: str = "1") -> Proof:
    return verify_version(ws, "tiny", version)


def told(proof: Proof, step: str) -> str:
    [found] = [each for each in proof.steps if each.name == step]
    assert found.passed is False, proof
    return found.told


def execute(ws: Workspace, sql: str, *values: Any) -> None:
    with closing(sqlite3.connect(ws.root / "mlflow.db")) as database:
        assert database.execute(sql, values).rowcount == 1
        database.commit()


def lines(ws: Workspace) -> dict[str, str]:
    with closing(sqlite3.connect(ws.root / "mlflow.db")) as database:
        return dict(database.execute("select key, value from params where key like 'entry.%' order by key"))


def rewrite(folder: Path, change: Callable[[torch.Tensor, torch.Tensor], object], name: str = GATE) -> None:
    """Change a tensor of the stored checkpoint, the header staying as it is."""
    tensors = load_file(folder / WEIGHTS)
    keep = MaskFile(folder / MASKS)[GATE]
    change(tensors[name], keep)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def put(value: float, *, where_kept: bool) -> Callable[[torch.Tensor, torch.Tensor], object]:
    def change(weight: torch.Tensor, keep: torch.Tensor) -> None:
        weight[tuple((keep if where_kept else ~keep).nonzero()[3])] = value

    return change


def test_a_whole_version_is_proved_and_the_ledger_says_so(ws: Workspace) -> None:
    proof = prove(ws)
    assert [(step.name, step.passed) for step in proof.steps] == [(name, True) for name in STEPS], proof
    assert parse(list(lines(ws).values())[-1]).event == "verified"


@pytest.mark.parametrize(
    "changes",
    [{"register__artifact": "masks"}, {"prune__method": "sparsegpt", "prune__pattern": "2:4"}],
    ids=["masks only", "updated weights"],
)
def test_other_kinds_of_versions_are_proved(changes: dict[str, Any], finished: Workspace) -> None:
    settings = (prune_again if "prune__method" in changes else change_settings)(finished, **changes)
    register(finished, settings, PROVENANCE)
    proof = prove(finished)
    assert not proof.failed, proof


NORM = "model.layers.1.input_layernorm.weight"


def tune_a_norm(workspace: Workspace, _: Settings) -> None:
    """What a method writes that also changes a tensor without a mask: behind stage prune."""
    (workspace.masks / "updates").mkdir()
    norm = load_file(workspace.base / "model.safetensors")[NORM]
    save_updates({NORM: norm * 1.5}, {}, workspace.masks / "updates" / "001.safetensors")
    manifest, updates = read_json(workspace.masks / "manifest.json"), updates_in(workspace.masks / "updates")
    manifest["updates"] = {"folder": "updates", "digest": updates.digest, "tensors": [NORM], "tuned": [NORM]}
    write_json(workspace.masks / "manifest.json", manifest)


@pytest.fixture(scope="module")
def tuned(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A result with such a tensor; nothing is registered."""
    workspace = copy_workspace(finished_template, tmp_path_factory.mktemp("tuned"))
    settings = change_settings(workspace)
    tune_a_norm(workspace, settings)
    for stage in STAGES[STAGES.index(prune) + 1 :]:
        stage(workspace, settings)
    return workspace


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_tuned_tensor_is_proved_and_its_flipped_bytes_are_caught(
    artifact: str, tuned: Workspace, tmp_path: Path
) -> None:
    workspace = copy_workspace(tuned, tmp_path / "ws")
    register(workspace, change_settings(workspace, register__artifact=artifact), PROVENANCE)
    assert not prove(workspace).failed
    with stored(workspace) as folder:
        values = folder / "dass" / "updates" / "001.safetensors"
        check_flips_are_caught(workspace, folder, "1", [values], times=20, seed=1)
        base = load_file(workspace.base / "model.safetensors")
        with checkpoint_of(folder, ws=workspace) as checkpoint:
            made = load_file(checkpoint / "model.safetensors")
        assert torch.equal(made[NORM], base[NORM] * 1.5)
        assert torch.equal(made["model.norm.weight"], base["model.norm.weight"])
        if artifact == "checkpoint":
            rewrite(folder, lambda weight, _: weight.mul_(2), NORM)
            assert f"{NORM} is tuned, and differs from the stored value at (0,)" in told(prove(workspace), "weights")


def test_a_flipped_byte_is_caught_wherever_it_is(ws: Workspace) -> None:
    with stored(ws) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        check_flips_are_caught(ws, folder, "1", files, times=90, seed=0)
        put_bytes(files[0], files[0].read_bytes() + b"x")
        assert "files" in prove(ws).failed
    known, draw = lines(ws), random.Random(0)
    assert len(known) == 3
    for number in range(12):
        key = sorted(known)[-1 - number % 3]  # the end of the chain is the hardest
        at = draw.randrange(len(known[key]))
        flipped = known[key][:at] + chr(ord(known[key][at]) ^ 1) + known[key][at + 1 :]
        execute(ws, "update params set value = ? where key = ?", flipped, key)
        assert not holds(ws)
        execute(ws, "update params set value = ? where key = ?", known[key], key)
    assert holds(ws)


def holds(ws: Workspace) -> bool | None:
    """Whether a proof says so of the ledger."""
    with tracking(ws) as client:
        return take_step("ledger", lambda: check_ledger(ws, client, "tiny", "1"), ws.root).passed


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (put(0.125, where_kept=True), GATE, r"gate_proj.weight\[.*\] is kept, and is not the base's"),
        (put(-0.0, where_kept=False), GATE, r"was removed, and is −0\.0: expected \+0\.0"),
        (put(1e-30, where_kept=False), GATE, r"was removed, and is not zero"),
        (lambda weight, _: weight.add_(1), "model.norm.weight", "model.norm.weight is not pruned, and differs"),
    ],
    ids=["kept", "minus zero", "tiny", "outside"],
)
def test_a_changed_weight_is_named_whoever_signs_it(ws: Workspace, change: Any, name: str, expected: str) -> None:
    with stored(ws) as folder:
        rewrite(folder, change, name)
        proof = prove(ws)
        assert "model/model.safetensors" in told(proof, "files")
        assert re.search(expected, told(proof, "weights"))
        (folder / signing.SIGNATURE).unlink()
        signing.sign(folder)  # somebody who has the key
        proof = prove(ws)
        assert proof.failed == "files, weights, configuration"
        assert re.search(expected, told(proof, "weights"))
        assert "model/dass.json: files.model.safetensors is" in told(proof, "configuration")


def test_a_version_signed_with_another_key_is_told(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored(ws) as folder:
        (folder / signing.SIGNATURE).unlink()
        monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "other.pem"))
        signing.sign(folder)
        assert "the folder is another version's, or was signed again" in told(prove(ws), "files")


def test_a_manifest_that_was_edited_is_told(ws: Workspace) -> None:
    with stored(ws) as folder:
        manifest = read_json(folder / MANIFEST)
        manifest["calibration"]["tokens"] += 1
        write_json(folder / MANIFEST, manifest)
        assert MANIFEST in told(prove(ws), "files")


def test_masks_that_do_not_hold_the_pattern_are_named(ws: Workspace) -> None:
    with stored(ws) as folder:
        masks = dict(MaskFile(folder / MASKS))
        keep = masks[GATE]
        keep[tuple(keep.nonzero()[0])] = False
        save_masks(masks, folder / MASKS)
        proof = prove(ws)
        assert "layers.1.mlp.gate_proj.weight (gate_proj)" in told(proof, "pattern")
        assert "the masks' digest" in told(proof, "weights")


def test_two_shards_that_changed_places_are_told(finished: Workspace) -> None:
    workspace = finished
    model = AutoModelForCausalLM.from_pretrained(workspace.root / "model")
    (workspace.root / "model" / "model.safetensors").unlink()
    model.save_pretrained(workspace.root / "model", max_shard_size="60KB")
    settings = change_settings(workspace)
    for stage in STAGES:
        stage(workspace, settings)
    register(workspace, settings, PROVENANCE)
    with stored(workspace) as folder:
        one, other = sorted((folder / "model").glob("model-*.safetensors"))[:2]
        one.rename(folder / "spare")
        other.rename(one)
        (folder / "spare").rename(other)
        proof = prove(workspace)
        assert one.name in told(proof, "files")
        assert told(proof, "weights")


@pytest.mark.parametrize("kind", ["pickle", "link"])
def test_what_is_no_part_of_a_version_is_refused(ws: Workspace, kind: str, tmp_path: Path) -> None:
    with stored(ws) as folder:
        if kind == "pickle":
            (folder / "model" / "pytorch_model.bin").write_bytes(b"x")
        else:
            (tmp_path / "elsewhere").write_bytes(b"x")
            (folder / "model" / "notes.txt").symlink_to(tmp_path / "elsewhere")
        assert ("pickle" if kind == "pickle" else "symlink") in told(prove(ws), "files")


def test_an_alias_set_by_hand_is_told(ws: Workspace) -> None:
    with tracking(ws) as client:
        client.set_registered_model_alias("tiny", "champion", "1")
    assert "which the ledger never promoted" in told(prove(ws), "ledger")


def test_a_line_that_was_taken_out_is_told(ws: Workspace) -> None:
    prove(ws)
    execute(ws, "delete from params where key = 'entry.000000'")
    assert "entry 0 is missing" in told(prove(ws), "ledger")


def test_a_tail_that_was_cut_is_told(ws: Workspace) -> None:
    prove(ws)
    execute(ws, "delete from params where key = 'entry.000002'")
    assert "its end was cut off" in told(prove(ws), "ledger")


def test_a_base_that_is_not_to_be_had_proves_nothing(ws: Workspace, tmp_path: Path) -> None:
    other = copy_workspace(ws, tmp_path / "other")
    weights = other.base / "model.safetensors"
    tensors = load_file(weights)
    tensors[GATE] += 1
    save_file(tensors, weights, {"format": "pt"})
    shutil.rmtree(other.root / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ws.root / 'mlflow.db'}")
        before = lines(ws)
        with pytest.raises(UnavailableError, match="belong to the base with digest"):
            prove(other)
        assert lines(ws) == before
        with stored(ws) as folder:
            (folder / "README.md").write_text("better")
            proof = prove(other)
    assert [(step.name, step.passed) for step in proof.steps] == [
        ("files", False),
        ("ledger", True),
        ("weights", None),
        ("pattern", True),
        ("configuration", None),
    ]
    assert parse(list(lines(ws).values())[-1]).event == "failed"


def test_versions_whose_files_are_gone_are_named_and_nothing_is_recorded(ws: Workspace) -> None:
    before = lines(ws)
    with stored(ws) as folder:
        shutil.rmtree(folder)
    for look in (prove, lambda ws: list(verify_all(ws, "tiny"))):
        with pytest.raises(UnavailableError, match=f"its files are gone: no {folder}.*Put them back there"):
            look(ws)
    assert lines(ws) == before


def test_a_copy_is_proved_by_its_own_files(ws: Workspace, tmp_path: Path) -> None:
    copy = copy_workspace(ws, tmp_path / "ä copy? 100% #1 [x]")
    with stored(copy) as folder:
        assert folder.is_relative_to(copy.root)
        (folder / "README.md").write_text("better")
    assert "README.md" in told(prove(copy), "files")
    assert not prove(ws).failed


def test_a_copied_folder_is_proved_by_its_manifest(ws: Workspace, tmp_path: Path) -> None:
    with stored(ws) as folder:
        copy = shutil.copytree(folder, tmp_path / "copy")
    before = lines(ws)
    assert not verify_folder(ws, "tiny", copy).failed
    (copy / "README.md").write_text("better")
    assert "README.md" in told(verify_folder(ws, "tiny", copy), "files")
    assert lines(ws) == before, "a copy says nothing of the version"
    with pytest.raises(InputError, match="expected a registered version's folder"):
        verify_folder(ws, "tiny", tmp_path)


@pytest.mark.parametrize("name", ["challenger", "1"])
def test_a_name_is_a_version_first_and_with_a_slash_a_folder(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # as `dass materialize champion ./champion` leaves it: not a version's folder
    assert verify_named(ws, "tiny", name).what == "tiny version 1"
    assert caplog.text == ""
    with pytest.raises(InputError, match="has neither dass/manifest.json nor dass.json: expected a registered"):
        verify_named(ws, "tiny", f"./{name}")
    with stored(ws) as folder:
        shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
    assert verify_named(ws, "tiny", name).what == "tiny version 1"
    assert f"{name} is version 1 of tiny. For the folder of that name write ./{name}" in caplog.text
    for spelled in (f"./{name}", f"{name}/", str(tmp_path / name)):
        assert verify_named(ws, "tiny", spelled).what == str(Path(spelled))


@pytest.mark.parametrize("name", ["downloaded", "7"])
def test_a_name_that_is_no_version_may_be_a_version_s_folder(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"tiny has no version or alias '{name}': expected one of 1, or an alias. See"):
        verify_named(ws, "tiny", name)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"The folder {name} here is none of dass: no dass/manifest.json"):
        verify_named(ws, "tiny", name)
    with stored(ws) as folder:
        shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
    assert verify_named(ws, "tiny", name).what == name
    assert f"tiny has no version or alias {name}: this is the folder ./{name}" in caplog.text
    with pytest.raises(InputError, match=r"There is no folder \./nowhere"):
        verify_named(ws, "tiny", "./nowhere")
    with tracking(ws) as client, pytest.raises(InputError, match="or an alias, not a path"):
        find_version(client, "tiny", f"./{name}")


def test_an_alias_that_looks_like_a_number_comes_behind_the_number(
    ws: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking(ws) as client:
        client.set_registered_model_alias("tiny", "5", "1")
        assert str(find_version(client, "tiny", "5").version) == "1"
        client.delete_registered_model_alias("tiny", "5")
        client.create_model_version("tiny", find_version(client, "tiny", "1").source)
        client.set_registered_model_alias("tiny", "1", "2")
        assert str(find_version(client, "tiny", "1").version) == "1"
        client.delete_registered_model_alias("tiny", "1")
    assert "1 is version 1 of tiny, not 2, which has it as an alias" in caplog.text


def test_every_version_is_verified(ws: Workspace) -> None:
    assert [proof.what for proof in verify_all(ws, "tiny")] == ["tiny version 1"]
    with pytest.raises(InputError, match="has no model 'nobody'"):
        list(verify_all(ws, "nobody"))


@pytest.mark.parametrize("version", ["7", "nobody"])
def test_a_version_that_does_not_exist_is_named(ws: Workspace, version: str) -> None:
    with pytest.raises(InputError, match=f"no version or alias '{version}'"):
        prove(ws, version)


def test_a_server_that_does_not_answer_is_told(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(TrackingError, match="127.0.0.1:9"):
        prove(ws)
