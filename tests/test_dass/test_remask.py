"""Masks that are kept, and put on again once somebody has changed the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dass
from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file
from dass.masks.mask_file import MaskFile
from dass.model.checkpoint import Checkpoint
from tests.models import save_tiny_checkpoint, tiny_tokens

DOWN = "model.layers.0.mlp.down_proj.weight"


def pruned(folder: Path, **options: Any) -> Path:
    base = save_tiny_checkpoint(folder / "base")
    dass.prune_checkpoint(base, folder / "pruned", tiny_tokens(), masks=folder / "masks", **options)
    return folder / "pruned"


def merged(folder: Path, out: Path) -> Path:
    """As a merged LoRA leaves a model: a small matrix of rank one added to every MLP weight."""
    out.mkdir()
    for name, path in files_in(folder).items():
        if not name.endswith(".safetensors"):
            (out / name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if ".mlp." in name:
            weight += 0.01 * torch.outer(torch.rand(weight.shape[0]) + 1, torch.rand(weight.shape[1]) + 1)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "dass.json").unlink()
    return out


def test_a_merged_adapter_loses_the_zeros_and_the_masks_bring_them_back(tmp_path: Path) -> None:
    tuned = merged(pruned(tmp_path, pattern="2:4"), tmp_path / "tuned")
    report = dass.apply_masks(tuned, tmp_path / "masks", tmp_path / "again")
    masks, before, after = (
        MaskFile(tmp_path / "masks" / "masks.safetensors"),
        Checkpoint(tuned),
        Checkpoint(tmp_path / "again"),
    )
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert (report.removed, report.restored, report.left) == (removed, removed, [])
    assert report.summary() == f"{removed:,} of {removed:,} removed weights had come back; they are zero again."
    for name in before.stored:
        expected = before.bits(name)
        if name in masks:
            expected = expected.masked_fill(~masks[name], 0)
        assert torch.equal(after.bits(name), expected), name
    down = after.load([DOWN])[DOWN]
    assert "2:4" in map(str, dass.pattern_of(down).along_in)
    assert not dass.pattern_of(before.load([DOWN])[DOWN]).along_in
    record = read_json(tmp_path / "again" / "dass.json")
    assert record["settings"]["pattern"] == "2:4"
    assert record["base"] is None  # it was not dass that wrote the tuned weights


def test_where_nothing_was_lost_the_weights_come_out_as_they_went_in(tmp_path: Path) -> None:
    folder = pruned(tmp_path)
    report = dass.apply_masks(folder, tmp_path / "masks" / "masks.safetensors", tmp_path / "again")
    assert report.restored == 0 < report.removed
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(folder / "model.safetensors")


def test_the_kept_masks_are_those_of_the_run_and_say_so(tmp_path: Path) -> None:
    pruned(tmp_path, method="wanda", work=tmp_path / "work")
    file = MaskFile(tmp_path / "masks" / "masks.safetensors")
    for path in (tmp_path / "work").glob("*/layer_*.safetensors"):
        layer = MaskFile(path)
        assert all(torch.equal(file[name], layer[name]) for name in layer)
    record = read_json(tmp_path / "masks" / "dass.json")
    assert record["settings"]["method"] == "wanda"
    assert sorted(files_in(tmp_path / "masks")) == ["dass.json", "masks.safetensors"]
    again = sha256_file(file.path)
    dass.prune_checkpoint(  # replaced, with the same bytes
        tmp_path / "base", tmp_path / "pruned", tiny_tokens(), "wanda", masks=tmp_path / "masks", work=tmp_path / "work"
    )
    assert sha256_file(file.path) == again


def test_masks_go_where_they_harm_nothing(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for masks, message in (
        (base, "is the input"),
        (tmp_path / "out", "is the output"),
        (tmp_path / "out" / "masks", "lies inside the output"),
        (tmp_path / "mine", "dass did not make it"),
        (3, "masks is 3: expected the path of a folder"),
    ):
        with pytest.raises(InputError, match=message):
            dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), masks=masks)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "mine"]


def test_what_cannot_take_the_masks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = pruned(tmp_path)
    other = save_tiny_checkpoint(tmp_path / "other", intermediate_size=48)
    quantized = merged(folder, tmp_path / "quantized")
    config = (quantized / "config.json").read_text()
    (quantized / "config.json").write_text(config.replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1))
    packed = merged(folder, tmp_path / "packed")
    tensors = load_file(packed / "model.safetensors")
    tensors = {name.replace("down_proj.weight", "down_proj.qweight"): value for name, value in tensors.items()}
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    for given, masks, message in (
        (other, tmp_path / "masks", "the mask is .* another base"),
        (quantized, tmp_path / "masks", r"quantization_config \(gptq\)"),
        (packed, tmp_path / "masks", r"The masks name .*down_proj\.weight, which .* does not hold"),
        (
            folder,
            tmp_path / "nowhere",
            r"masks is .*nowhere: expected a mask file, or a folder with masks\.safetensors",
        ),
        (folder, tmp_path / "base", r"masks is .*base: expected"),
        (folder, folder / "model.safetensors", "is not a mask file"),
        (tmp_path / "masks", tmp_path / "masks", r"No model\.safetensors .*masks: expected a safetensors checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            dass.apply_masks(given, masks, tmp_path / "again")
    for out, message in (
        (folder, "is the input"),
        (tmp_path / "masks", "is the masks"),
        (tmp_path / "base", "did not"),
    ):
        with pytest.raises(InputError, match=message):
            dass.apply_masks(folder, tmp_path / "masks", out)
    assert not (tmp_path / "again").exists()
