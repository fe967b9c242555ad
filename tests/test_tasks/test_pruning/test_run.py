"""The prune and materialize stages on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import dass
from dass.engine.choice import Choice
from dass.engine.run import LayerRecord
from dass.errors import InputError, NumericalError
from dass.files import digest_of, read_json, sha256_file, write_json
from dass.masks.mask_file import MaskFile
from dass.masks.proof import prove_patterns
from tasks.pruning.processes import ProcessesError
from tasks.pruning.run import PruningRun, share_statistics
from tasks.pruning.stages import materialize, prune, seconds_per_layer
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Engine, Settings, validate_settings
from tests.models import LAYERS, save_tiny_checkpoint, tiny_tokens


def settings(**prune: object) -> Settings:
    source = {"uri": "nowhere"}
    return validate_settings(
        {
            "sources": {"model": source, "calibration": source, "evaluation": source},
            "calibration": {"samples": 4, "sequence_length": 16, "seed": 0},
            "prune": {"method": "dass", "pattern": "unstructured", "sparsity": 0.5, "alpha": 0.5, **prune},
            "engine": {"device": "cpu"},
            "evaluate": {"samples": 4, "sequence_length": 16},
            "register": {"model": "m", "experiment": "e"},
        },
        "test",
    )


def with_engine(engine: dict[str, object]) -> Settings:
    return settings().model_copy(update={"engine": Engine.model_validate(engine)})


def make_workspace(root: Path, family: str = "llama") -> Workspace:
    workspace = Workspace(root)
    save_tiny_checkpoint(workspace.base, family)
    files = {path.name: sha256_file(path) for path in sorted(workspace.base.iterdir())}
    write_json(workspace.base / "source.json", {"uri": "tiny", "files": files, "digest": digest_of(files)})
    workspace.calibration.mkdir(parents=True)
    save_file({"input_ids": tiny_tokens()}, workspace.calibration / "tokens.safetensors")
    write_json(workspace.calibration / "calibration.json", {"digest": "c"})
    write_json(workspace.recovered / "recovery.json", {"trained": False})
    return workspace


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def test_masks_equal_those_of_the_library_call(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings(pattern="2:4"))
    model = AutoModelForCausalLM.from_pretrained(workspace.base)
    expected = dass.prune(model, tiny_tokens(), pattern="2:4").keep
    masks = MaskFile(workspace.masks / "masks.safetensors")
    assert set(masks) == set(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in expected)


def test_the_manifest_names_what_the_result_depends_on(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings())
    manifest = read_json(workspace.masks / "manifest.json")
    assert manifest["base"] == read_json(workspace.base / "source.json")
    assert manifest["calibration"] == {"digest": "c"}
    made_with = {"method": "dass", "pattern": "unstructured", "sparsity": 0.5, "alpha": 0.5, "update": "none"}
    assert manifest["settings"]["prune"].items() >= made_with.items()
    assert manifest["updates"] is None
    assert manifest["masks"]["digest"] == MaskFile(workspace.masks / "masks.safetensors").digest
    assert manifest["sparsity"]["mlp"] == 0.5
    assert 0 < manifest["sparsity"]["model"] < 0.5
    assert [layer["layer"] for layer in manifest["layers"]] == list(range(LAYERS))
    assert "seconds" not in json.dumps(manifest)
    assert seconds_per_layer(workspace) is not None


def test_the_manifest_tells_what_auto_tried_and_chose(tmp_path: Path) -> None:
    what = {"method": "auto", "auto_windows": 1, "auto_budget": 2, "pattern": "2:4", "layout": "transposable"}
    one, two = (make_workspace(tmp_path / name) for name in ("one", "two"))
    prune(one, settings(**what))
    manifest = read_json(one.masks / "manifest.json")
    choice = Choice.of(manifest["auto"])
    assert (choice.windows, choice.tokens) == (1, 16)
    assert [(layer["method"], layer["alpha"]) for layer in manifest["layers"]] == [
        (score.method, score.alpha) for score in choice.scores
    ]
    assert choice.best.kl == min(each.kl for each in choice.proposals)
    prove_patterns(manifest, MaskFile(one.masks / "masks.safetensors"))

    def killed(run: PruningRun) -> None:
        run.choose()
        raise Killed

    with pytest.raises(Killed):
        prune(two, settings(**what), choose=killed)
    prune(two, settings(**what))
    assert bytes_of(one.masks) == bytes_of(two.masks)
    prune(two, settings())
    assert read_json(two.masks / "manifest.json")["auto"] is None


@pytest.mark.slow
def test_auto_by_two_processes_ends_in_the_same_choice(tmp_path: Path) -> None:
    what = settings(method="auto", auto_windows=1, auto_budget=1)
    one, two = (make_workspace(tmp_path / name) for name in ("one", "two"))
    processes = {"device": "cpu", "batch_tokens": 16, "processes": 1}
    for workspace, count in ((one, 1), (two, 2)):
        engine = Engine.model_validate({**processes, "processes": count})
        prune(workspace, what.model_copy(update={"engine": engine}))
    masks = [MaskFile(workspace.masks / "masks.safetensors").digest for workspace in (one, two)]
    assert masks[0] == masks[1]
    choices = [Choice.of(read_json(workspace.masks / "manifest.json")["auto"]) for workspace in (one, two)]
    assert choices[0].scores == choices[1].scores


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    one, two = (make_workspace(tmp_path / name) for name in ("one", "two"))
    for workspace in (one, two):
        prune(workspace, settings())
        materialize(workspace, settings())
    assert bytes_of(one.masks) == bytes_of(two.masks)
    assert bytes_of(one.pruned) == bytes_of(two.pruned)


class Killed(BaseException):
    """Ends a run where it stands, as a kill would."""


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_killed_run_goes_on_behind_its_last_finished_layer_with_the_same_bytes(tmp_path: Path, family: str) -> None:
    undisturbed, killed = (make_workspace(tmp_path / name, family) for name in ("one", "two"))
    prune(undisturbed, settings())

    def until_layer_2(run: PruningRun, index: int) -> LayerRecord:
        if index == 2:
            raise Killed
        return run.layer(index)

    with pytest.raises(Killed):
        prune(killed, settings(), until_layer_2)
    assert not killed.masks.exists()
    records: list[LayerRecord] = []

    def note(run: PruningRun, index: int) -> LayerRecord:
        records.append(run.layer(index))
        return records[-1]

    prune(killed, settings(), note)
    assert [record.resumed for record in records] == [True, True, False]
    assert bytes_of(killed.masks) == bytes_of(undisturbed.masks)


def test_a_changed_setting_never_continues_an_old_run(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings())
    records: list[LayerRecord] = []

    def note(run: PruningRun, index: int) -> LayerRecord:
        records.append(run.layer(index))
        return records[-1]

    prune(workspace, settings(alpha=1.0), note)
    assert not any(record.resumed for record in records)
    assert len(list(workspace.work.iterdir())) == 1  # the finished run's layers are not kept for ever


def test_the_pruned_checkpoint_is_the_base_times_the_masks(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings())
    materialize(workspace, settings())
    masks = MaskFile(workspace.masks / "masks.safetensors")
    base = AutoModelForCausalLM.from_pretrained(workspace.base).state_dict()
    pruned = AutoModelForCausalLM.from_pretrained(workspace.pruned).state_dict()
    for name, value in pruned.items():
        assert torch.equal(value, base[name] * masks[name] if name in masks else base[name])
    assert not (workspace.pruned / "source.json").exists()
    assert (workspace.pruned / "tokenizer.json").read_bytes() == (workspace.base / "tokenizer.json").read_bytes()


def test_a_stage_without_its_inputs_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dvc repro sources"):
        prune(Workspace(tmp_path), settings())
    with pytest.raises(InputError, match="dvc repro sources"):
        materialize(Workspace(tmp_path), settings())


def test_masks_of_another_base_are_not_applied(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings())
    source = workspace.base / "source.json"
    write_json(source, {**read_json(source), "digest": "other"})
    with pytest.raises(InputError, match="another base"):
        materialize(workspace, settings())
    assert not workspace.pruned.exists()


def test_a_pattern_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    with pytest.raises(InputError, match="not a multiple of M=3"):
        prune(workspace, settings(pattern="2:3", sparsity=None))
    assert not workspace.work.exists()


def test_nan_activations_name_the_layer_and_leave_no_result(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(workspace.base)
    model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(workspace.base)
    with pytest.raises(NumericalError, match=r"model\.layers\.1"):
        prune(workspace, settings())
    assert not workspace.masks.exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    changed = settings()
    missing = changed.model_copy(update={"engine": changed.engine.model_copy(update={"device": "cuda:77"})})
    with pytest.raises(InputError, match="torch sees"):
        prune(workspace, missing)


def test_new_values_of_kept_weights_are_part_of_the_result(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    asked = settings(method="sparsegpt", pattern="2:4", update="reconstruct")
    prune(workspace, asked)
    materialize(workspace, asked)
    manifest = read_json(workspace.masks / "manifest.json")
    assert len(manifest["updates"]["tensors"]) == 3 * LAYERS
    model = AutoModelForCausalLM.from_pretrained(workspace.base)
    dass.prune(model, tiny_tokens(), "sparsegpt", pattern="2:4", update="reconstruct")
    pruned = AutoModelForCausalLM.from_pretrained(workspace.pruned).state_dict()
    assert all(torch.equal(value, pruned[name]) for name, value in model.state_dict().items())


def test_one_pass_through_the_dense_model_serves_every_method(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    prune(workspace, settings(propagation="dense"))
    collected = {path: path.stat().st_mtime_ns for path in workspace.statistics.rglob("*.safetensors")}
    assert len(collected) == LAYERS
    (workspace.calibration / "tokens.safetensors").write_bytes(b"")
    save_file({"input_ids": torch.zeros(1, 1, dtype=torch.long)}, workspace.calibration / "tokens.safetensors")
    digests = set()
    for method in ("dass", "wanda", "magnitude"):
        for pattern in ("unstructured", "2:4"):
            prune(workspace, settings(propagation="dense", method=method, pattern=pattern))
            digests.add(read_json(workspace.masks / "manifest.json")["masks"]["digest"])
    assert len(digests) == 6
    assert collected == {path: path.stat().st_mtime_ns for path in workspace.statistics.rglob("*.safetensors")}


@pytest.mark.slow
def test_several_processes_make_the_masks_that_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (make_workspace(tmp_path / name) for name in ("one", "two"))
    for name in ("tasks", "torch", "typing"):  # a user's own, in the folder where the command is given
        (two.root / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    monkeypatch.chdir(two.root)
    engine = {"device": "cpu", "batch_tokens": 16}
    prune(one, with_engine(engine))
    prune(two, with_engine({**engine, "processes": 2}))
    assert bytes_of(one.masks) == bytes_of(two.masks)


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_finished_layers_stay(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    asked = with_engine({"device": "cpu", "batch_tokens": 64, "processes": 2})  # one batch for two processes
    with pytest.raises(ProcessesError, match=r"stopped in layer 0 .*2 processes share 1 batches"):
        prune(workspace, asked)
    assert not workspace.masks.exists()


def test_runs_share_one_dense_pass_and_get_the_statistics_of_a_pass_of_their_own(tmp_path: Path) -> None:
    asked = [settings(method=method, propagation="dense") for method in ("dass", "wanda", "sparsegpt")]
    together, alone = make_workspace(tmp_path / "together"), make_workspace(tmp_path / "alone")
    assert share_statistics(together, [*asked, settings()]) == 1
    assert share_statistics(together, asked) == 0
    for each in asked:
        prune(alone, each)
    folders = {folder.name: bytes_of(folder) for folder in alone.statistics.iterdir()}
    assert len(folders) == 2  # with Gram matrices and without
    assert folders == {folder.name: bytes_of(folder) for folder in together.statistics.iterdir()}
