"""Stage `recover` on a tiny model: off it changes nothing; on it is registered, signed and proved."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

import dass
from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file, write_json
from dass.masks.mask_file import MaskFile
from dass.recovery.loop import Recovery
from tasks.evaluation.overlap import calibration_grams
from tasks.promotion.diff import diff
from tasks.promotion.proof import Proof
from tasks.promotion.verification import verify_version
from tasks.pruning.recovered import NOT_TRAINED
from tasks.pruning.stages import materialize
from tasks.recovery.run import RecoveryRun, forget_states
from tasks.recovery.stages import recover
from tasks.registry.loading import checkpoint_of
from tasks.registry.registration import register
from tasks.registry.show import render, show
from tasks.registry.tracking import tracking
from tasks.registry.versions import find_version, folder_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.flips import check_flips_are_caught
from tests.processes import start
from tests.workspaces import STAGES, change_settings, copy_workspace, start_workspace

ON: dict[str, Any] = {
    "prune__pattern": "2:4",
    "calibration__samples": 8,
    "recover__steps": 4,
    "recover__step_tokens": 64,
    "recover__batch_tokens": 32,
    "recover__learning_rate": 0.01,
    "recover__warmup_steps": 1,
    "recover__evaluate_every": 2,
    "recover__checkpoint_every": 2,
}
PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}


@pytest.fixture(scope="module")
def template(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Pruned, and not yet recovered; mlflow.db is migrated and empty."""
    ws, settings = start_workspace(tmp_path_factory.mktemp("pruned"), **ON)
    shutil.copy(finished_template.root / "mlflow.db", ws.root)
    for stage in STAGES[: STAGES.index(recover)]:
        stage(ws, settings)
    return ws


@pytest.fixture
def pruned(template: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(template, tmp_path / "workspace")


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def asked(ws: Workspace, **changes: Any) -> Settings:
    return change_settings(ws, **{**ON, **changes})


def bytes_of(folder: Path) -> dict[str, str]:
    return {name: sha256_file(path) for name, path in files_in(folder).items()}


def test_off_the_folder_holds_the_record_only_and_the_checkpoint_is_base_times_masks(pruned: Workspace) -> None:
    settings = asked(pruned, recover__steps=0)
    recover(pruned, settings)
    assert read_json(pruned.recovered / "recovery.json") == {"format": "dass-recovery-1", "trained": False}
    assert list(files_in(pruned.recovered)) == ["recovery.json"]
    materialize(pruned, settings)
    base, made = (load_file(folder / "model.safetensors") for folder in (pruned.base, pruned.pruned))
    masks = MaskFile(pruned.masks / "masks.safetensors")
    assert all(torch.equal(made[name], base[name] * masks[name] if name in masks else base[name]) for name in base)


def test_equal_recoveries_write_equal_bytes_and_the_record_says_what_was_done(
    pruned: Workspace, template: Workspace, tmp_path: Path
) -> None:
    settings = asked(pruned)
    seen: list[int] = []
    recover(pruned, settings, lambda entry: seen.append(entry["step"]))
    assert seen == [0, 1, 2, 3, 4]
    other = copy_workspace(template, tmp_path / "other")
    recover(other, asked(other))
    assert bytes_of(other.recovered) == bytes_of(pruned.recovered)
    record = read_json(pruned.recovered / "recovery.json")
    source = read_json(pruned.base / "source.json")
    assert (record["steps"], record["tokens"]) == (4, 4 * 64)
    assert record["base"] == record["teacher"] == source["digest"]
    assert record["text"].items() >= {"windows": 8, "tokens": 256, "held_back": 1, "drawn": False}.items()
    assert record["held_back"]["stored"] < record["held_back"]["start"]
    assert record["history"][record["best_step"]]["held_back"] == record["held_back"]["best"]
    assert len(record["updates"]["tuned"]) == 7  # two norms a layer, and the last
    assert not list(pruned.work.glob("*/state_*"))
    materialize(pruned, settings)
    made = load_file(pruned.pruned / "model.safetensors")
    for name, keep in MaskFile(pruned.masks / "masks.safetensors").items():
        assert not made[name][~keep].view(torch.int32).any()


@pytest.fixture(scope="module", params=[("checkpoint", "mlp+norms"), ("masks", "norms")], ids=lambda p: p[0])
def registered(
    request: pytest.FixtureRequest, template: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Workspace, str]]:
    """A version that was trained behind one that was not, in an embedded registry."""
    artifact, train = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ws = copy_workspace(template, tmp_path_factory.mktemp("registered"))
        for steps in (0, 4):
            settings = asked(ws, recover__steps=steps, recover__train=train, register__artifact=artifact)
            for stage in STAGES[STAGES.index(recover) :]:
                stage(ws, settings)
            register(ws, settings, PROVENANCE)
        yield ws, train


def prove(ws: Workspace) -> Proof:
    return verify_version(ws, "tiny", "2")


def told(proof: Proof, step: str) -> str:
    [found] = [each for each in proof.steps if each.name == step]
    assert found.passed is False, proof
    return found.told


def test_a_trained_version_is_proved_and_everything_says_that_it_was_trained(
    registered: tuple[Workspace, str], tmp_path: Path
) -> None:
    ws, train = registered
    proof = prove(ws)
    assert not proof.failed, proof
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", "2")) as folder:
        assert f"What is left was trained: {train}, 4 steps on 256 tokens" in (folder / "README.md").read_text()
        with checkpoint_of(folder, ws=ws) as checkpoint:
            assert sha256_file(checkpoint / "model.safetensors") == sha256_file(ws.pruned / "model.safetensors")
        small = sum(path.stat().st_size for path in (folder / "dass" / "recovered").iterdir())
        assert (small < 4000) == (train == "norms")
        assert dass.load(folder, ws.base).state_dict()
        run = find_version(client, "tiny", "2").run_id
        history = MlflowClient(client.tracking_uri).get_metric_history(run, "recover.step.loss")
        assert [metric.step for metric in history] == [1, 2, 3, 4]
        assert client.get_run(run).data.metrics["recover.held_back.stored"] > 0
        assert client.get_run(run).data.params["recover.train"] == train
    for version in (None, "2"):
        record = show(ws, version)
        assert record["recovery"]["steps"] == 4
        assert render(record)
    assert show(ws, "1")["recovery"] == NOT_TRAINED
    values = diff(ws, "tiny", "1", "2")["values"]
    assert values["recovered.tensors"][0] == 0
    assert values["recovered.tensors"][1] > 0


def test_twenty_of_twenty_flipped_bytes_are_caught(registered: tuple[Workspace, str]) -> None:
    ws, _ = registered
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", "2")) as folder:
        files = sorted((folder / "dass" / "recovered").iterdir())
        files += [folder / "dass" / "recovery.json", *sorted((folder / "model").glob("*.safetensors"))]
        check_flips_are_caught(ws, folder, "2", files, times=20, seed=2)


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        ({"best_step": 1}, "configuration", "dass/recovery.json: best_step is 1"),
        ({"masks": "0" * 64}, "weights", "was trained with masks 0000"),
        ({"updates": None}, "weights", "does not hold the updates that the manifest names"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_record_that_says_something_else_is_told(
    change: dict[str, Any], step: str, expected: str, registered: tuple[Workspace, str]
) -> None:
    ws, _ = registered
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", "2")) as folder:
        path = folder / "dass" / "recovery.json"
        before = path.read_bytes()
        write_json(path, {**read_json(path), **change})
        try:
            assert expected in told(prove(ws), step)
        finally:
            path.unlink()
            path.write_bytes(before)


@pytest.mark.parametrize("sharded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_have_the_losses_of_one(
    sharded: bool, pruned: Workspace, template: Workspace, tmp_path: Path
) -> None:
    other = copy_workspace(template, tmp_path / "other")
    recover(pruned, asked(pruned))
    seen: list[int] = []
    settings = asked(other, engine__processes=2, recover__sharded=sharded)
    recover(other, settings, lambda entry: seen.append(entry["step"]))
    assert seen == [0, 1, 2, 3, 4]
    one, two = (read_json(ws.recovered / "recovery.json") for ws in (pruned, other))
    assert one["fingerprint"] != two["fingerprint"]
    for alone, shared in zip(one["history"], two["history"], strict=True):
        assert shared == pytest.approx(alone, rel=1e-3)
    assert two["held_back"] == pytest.approx(one["held_back"], rel=1e-3)
    assert two["updates"]["tensors"] == one["updates"]["tensors"]
    assert two["engine"].get("sharded", False) == sharded


def test_windows_of_its_own_are_drawn_and_kept_and_count_as_calibration(pruned: Workspace) -> None:
    settings = asked(pruned, recover__windows=20, recover__sequence_length=16, recover__seed=5)
    recover(pruned, settings)
    drawn = load_file(pruned.recovered / "tokens.safetensors")["input_ids"]
    record = read_json(pruned.recovered / "recovery.json")
    assert drawn.shape == (20, 16)
    assert record["text"].items() >= {"windows": 20, "held_back": 2, "drawn": True}.items()
    assert calibration_grams(pruned).share_of(drawn.unbind())["share"] == 1.0
    (pruned.recovered / "tokens.safetensors").unlink()
    assert calibration_grams(pruned).share_of(drawn.unbind())["share"] < 1.0
    with pytest.raises(InputError, match=r"recover.windows: calibration: The text gives \d+ windows"):
        recover(pruned, asked(pruned, recover__windows=100000))


def test_a_stored_teacher_is_asked_once(pruned: Workspace) -> None:
    settings = asked(pruned, recover__teacher="stored", recover__top_k=128)
    run = RecoveryRun(pruned, settings)
    run.train(lambda _: None)
    run.finish(pruned.recovered)
    record = read_json(pruned.recovered / "recovery.json")
    assert record["held_back"]["stored"] < record["held_back"]["start"]
    assert list(pruned.work.glob("*/teacher.safetensors"))


def test_masks_that_are_not_there_or_another_s_are_refused(pruned: Workspace) -> None:
    settings = asked(pruned)
    source = read_json(pruned.base / "source.json")
    write_json(pruned.base / "source.json", {**source, "digest": "other"})
    with pytest.raises(InputError, match="so that one is no teacher of this student"):
        recover(pruned, settings)
    write_json(pruned.base / "source.json", source)
    shutil.rmtree(pruned.masks)
    with pytest.raises(InputError, match="dvc repro prune"):
        recover(pruned, settings)
    assert not pruned.recovered.exists()


def test_what_was_recovered_from_other_masks_is_not_materialized(pruned: Workspace) -> None:
    settings = asked(pruned)
    with pytest.raises(InputError, match="dvc repro recover"):
        materialize(pruned, settings)
    recover(pruned, settings)
    record = read_json(pruned.recovered / "recovery.json")
    write_json(pruned.recovered / "recovery.json", {**record, "masks": "0" * 64})
    with pytest.raises(InputError, match="it belongs to another result. Run: dass run"):
        materialize(pruned, settings)


def test_a_recovery_begun_on_another_device_is_refused_until_its_states_are_forgotten(pruned: Workspace) -> None:
    settings = asked(pruned)
    run = RecoveryRun(pruned, settings)
    begun = pruned.work / "begun"
    write_json(begun / "inputs.json", {"inputs": run._inputs, "engine": {**run._engine, "device": "cuda"}})
    with pytest.raises(InputError, match=r"begun on cuda in float32 with 1 process\(es\) .* dass run --restart"):
        recover(pruned, settings)
    assert begun.exists()
    assert not pruned.recovered.exists()
    recover(pruned, asked(pruned, recover__seed=1))  # another recovery: none of its business
    write_json(begun / "inputs.json", {"inputs": run._inputs, "engine": {**run._engine, "device": "cuda"}})
    assert forget_states(pruned) == 2
    recover(pruned, settings)
    assert (pruned.recovered / "recovery.json").exists()


def test_too_little_memory_says_what_to_lower(pruned: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked(pruned)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "run", full)
        with pytest.raises(InputError, match=r"does not fit into the memory of cpu. Lower recover.batch_tokens"):
            recover(pruned, settings)
    monkeypatch.setattr("tasks.recovery.run.free_host_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"Recovery needs .* GB are free\. Lower recover.batch_tokens"):
        recover(pruned, settings)
    assert not pruned.recovered.exists()


@pytest.mark.slow
def test_a_recovery_killed_at_five_random_moments_ends_in_the_bytes_of_an_undisturbed_one(
    template: Workspace, tmp_path: Path
) -> None:
    many = {"recover__steps": 120, "recover__evaluate_every": 7, "recover__checkpoint_every": 5}
    undisturbed = copy_workspace(template, tmp_path / "undisturbed")
    began = _train_until(undisturbed, asked(undisturbed, **many), None)
    expected = bytes_of(undisturbed.recovered)
    draw = random.Random(3)
    for number in range(5):
        ws = copy_workspace(template, tmp_path / f"killed{number}")
        settings = asked(ws, **many)
        _train_until(ws, settings, draw.uniform(0.05, 0.95) * began)
        assert not ws.recovered.exists()
        recover(ws, settings)
        assert bytes_of(ws.recovered) == expected


def _train_until(ws: Workspace, settings: Settings, seconds: float | None) -> float:
    """Recover in a process of its own that is killed so long after its training began; None: not at all.

    Returns:
        How long it trained.
    """
    process = start(recover, ws, settings)
    try:
        while not list(ws.work.glob("*/best_*")):
            assert process.is_alive()
            time.sleep(0.005)
        began = time.monotonic()
        process.join(seconds)
        if seconds is not None:
            assert process.is_alive()
    finally:
        process.kill()
        process.join()
    return time.monotonic() - began
