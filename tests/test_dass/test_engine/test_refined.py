"""`refine: swaps` through the whole engine: the counts stay, the error falls, and what comes out is proved."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import dass
from dass.files import read_json
from dass.masks.mask_file import MaskFile, MaskFiles
from dass.masks.proof import prove_patterns, prove_weights
from dass.masks.updates import Updates
from dass.method.methods import PROJECTIONS
from dass.model.checkpoint import Checkpoint
from tests.models import save_tiny_checkpoint, tiny_model, tiny_tokens

TOKENS = tiny_tokens(8, 32)
SWAPS: dict[str, Any] = {"refine": "swaps", "max_swaps": 5}
HOWS: list[dict[str, Any]] = [
    {},
    {"pattern": "2:4"},
    {"method": "wanda", "pattern": "4:8"},
    {"method": "wanda", "sparsity": 0.6},
    {"method": "magnitude"},
    {"method": "magnitude", "pattern": "2:4"},
    {"method": "sparsegpt", "pattern": "2:4"},
    {"method": "sparsegpt"},
    {"pattern": "2:4", "layout": "contraction"},
    {"pattern": "2:4", "layout": "transposable"},
    {"pattern": "2:4", "update": "reconstruct"},
    {"pattern": "2:4", "propagation": "dense"},
    {"allocation": "owl"},
    {"method": "auto", "auto_windows": 2, "auto_budget": 1},
]


def called(how: dict[str, Any]) -> str:
    return " ".join(map(str, how.values())) or "dass"


@pytest.mark.parametrize("how", HOWS, ids=called)
def test_swaps_keep_the_counts_and_lower_the_error_of_every_matrix(how: dict[str, Any]) -> None:
    report = dass.prune(tiny_model(), TOKENS, **SWAPS, **how)
    plain = dass.prune(tiny_model(), TOKENS, **how)
    assert [layer.sparsity for layer in report.layers] == [layer.sparsity for layer in plain.layers]
    swapped = 0
    for layer in report.layers:
        assert set(layer.refined) == set(PROJECTIONS)
        for matrix in layer.refined.values():
            assert matrix["error_after"] <= matrix["error_before"]
            assert (matrix["error_after"] < matrix["error_before"]) == (matrix["swaps"] > 0)
            swapped += int(matrix["swaps"])
    assert swapped > 0
    first, before = report.layers[0], plain.layers[0]
    if how.get("method") != "auto":  # which may choose otherwise
        # Each matrix is refined by itself, on dense inputs: together they nearly always come nearer too.
        assert not any(layer.refined for layer in plain.layers)
        if first.relative_error is not None and before.relative_error is not None:
            assert first.relative_error < before.relative_error


@pytest.mark.parametrize("how", HOWS[1::2], ids=called)
def test_a_refined_checkpoint_is_proved_and_is_the_model_in_memory(how: dict[str, Any], tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    work, kept = tmp_path / "work", tmp_path / "masks"
    report = dass.prune_checkpoint(base, tmp_path / "out", TOKENS, **SWAPS, work=work, masks=kept, **how)
    masks = MaskFile(kept / "masks.safetensors")
    updates = Updates(sorted(work.glob("*/updates_*.safetensors")))
    prove_weights(Checkpoint(base), Checkpoint(tmp_path / "out"), masks, updates or None)
    prune = read_json(kept / "dass.json")["settings"]
    assert prune["refine"] == "swaps"
    auto = report.choice and report.choice.named
    prove_patterns({"settings": {"prune": prune}, "layers": [asdict(x) for x in report.layers], "auto": auto}, masks)
    in_memory = dass.prune(tiny_model(), TOKENS, **SWAPS, **how)
    assert all(torch.equal(masks[name], mask) for name, mask in in_memory.keep.items())
    assert dict(MaskFiles(sorted(work.glob("*/layer_*.safetensors")))).keys() == dict(masks).keys()
