"""A pruned checkpoint is proved bit by bit, and what was tampered with is named."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dass
from dass.engine.choice import Choice, Proposal
from dass.engine.search import Search
from dass.masks.mask_file import MaskFiles
from dass.masks.proof import ProofError, prove_patterns, prove_weights
from dass.masks.updates import Updates, save_updates
from dass.method.plan import plan
from dass.model.checkpoint import Checkpoint
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_model, tiny_tokens

GATE = "model.layers.1.mlp.gate_proj.weight"
OUTSIDE = "model.layers.1.self_attn.q_proj.weight"


class Pruned:
    """A tiny checkpoint, pruned: base, masks, updates and the parts of the manifest that are read."""

    def __init__(self, folder: Path, **options: Any) -> None:
        if not (folder / "base").exists():
            save_tiny_checkpoint(folder / "base")
        report = dass.prune_checkpoint(
            folder / "base", folder / "pruned", tiny_tokens(), work=folder / "work", **options
        )
        self.base, self.folder = Checkpoint(folder / "base"), folder / "pruned"
        self.masks = dict(MaskFiles(sorted((folder / "work").glob("*/layer_*.safetensors"))))
        self.updates = Updates(sorted((folder / "work").glob("*/updates_*.safetensors")))
        self.manifest: dict[str, Any] = {
            "settings": {"prune": plan(**options).named},
            "layers": [asdict(layer) for layer in report.layers],
            "auto": report.choice and report.choice.named,
        }

    def prove(self) -> None:
        prove_weights(self.base, Checkpoint(self.folder), self.masks, self.updates or None)
        prove_patterns(self.manifest, self.masks)

    def change(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        """Write the checkpoint again with one tensor changed."""
        file = self.folder / "model.safetensors"
        tensors = load_file(file)
        tensors[name] = change(tensors[name].clone())
        save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def pruned(tmp_path: Path) -> Pruned:
    return Pruned(tmp_path)


PLANS: list[dict[str, Any]] = [
    {},
    {"sparsity": 0.37},
    {"pattern": "2:4"},
    {"pattern": "1:4", "method": "wanda"},
    {"pattern": "2:4", "layout": "contraction"},
    {"pattern": "2:4", "layout": "transposable", "update": "reconstruct"},
    {"method": "magnitude"},
    {"method": "sparsegpt"},
    {"method": "sparsegpt", "pattern": "2:4", "layout": "transposable"},
    {"allocation": "owl"},
    {"allocation": "owl", "pattern": "4:8", "owl_bound": 0.2},
    {"allocation": "sensitivity", "auto_windows": 1},
]


@pytest.mark.parametrize("options", PLANS, ids=lambda options: " ".join(map(str, options.values())) or "dass")
def test_every_kind_of_result_is_proved(options: dict[str, Any], tmp_path: Path) -> None:
    Pruned(tmp_path, **options).prove()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_is_proved(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "base")
    Pruned(tmp_path, pattern="2:4").prove()


MIXED = [
    {},
    {"pattern": "4:8", "propagation": "dense"},
    {"pattern": "2:4"},
    {"pattern": "2:4", "layout": "transposable", "update": "reconstruct"},
]


def mixed(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Pruned:
    """`method: auto`, made to give the three layers three scores."""

    def choose(search: Search) -> Choice:
        return Choice(search._candidates, [Proposal("mix", [0, 1, 3], 0.1)], "mix", 1, 16)

    monkeypatch.setattr(Search, "choose", choose)
    return Pruned(folder, method="auto", auto_windows=1, **options)


@pytest.mark.parametrize("options", MIXED, ids=lambda options: " ".join(options.values()) or "unstructured")
def test_each_layer_is_proved_by_its_own_score(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = mixed(tmp_path, monkeypatch, **options)
    pruned.prove()
    scores = [(layer["method"], layer["alpha"]) for layer in pruned.manifest["layers"]]
    assert scores == [("wanda", None), ("dass", 0.5), ("dass", 1.5)]
    for index, other in ((0, ("dass", 1.0)), (1, ("wanda", None)), (2, ("dass", 1.0))):
        pruned.manifest["layers"][index] |= dict(zip(("method", "alpha"), other, strict=True))
        with pytest.raises(ProofError, match=rf"layer {index}: its (method|alpha) is .*was chosen for it"):
            prove_patterns(pruned.manifest, pruned.masks)
        pruned.manifest["layers"][index] |= dict(zip(("method", "alpha"), scores[index], strict=True))
    prove_patterns(pruned.manifest, pruned.masks)


@pytest.mark.parametrize("pattern", ["unstructured", "4:8", "2:4"])
def test_a_layer_does_not_pass_for_one_of_another_score(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the choice was changed with it: its weights competed along another axis."""
    pruned = mixed(tmp_path, monkeypatch, pattern=pattern)
    pruned.manifest["auto"]["proposals"][0]["layers"] = [1, 1, 3]
    pruned.manifest["layers"][0] |= {"method": "dass", "alpha": 0.5}
    with pytest.raises(ProofError, match="does not hold along axis 0"):
        pruned.prove()


def test_a_choice_that_is_not_told_is_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = mixed(tmp_path, monkeypatch)
    pruned.manifest["auto"] = None
    with pytest.raises(ProofError, match="the manifest does not say what was chosen"):
        pruned.prove()


def test_a_layer_has_the_method_that_was_asked_for(pruned: Pruned) -> None:
    pruned.manifest["layers"][1]["method"] = "wanda"
    with pytest.raises(ProofError, match="layer 1: its method is wanda, and dass was chosen for it"):
        pruned.prove()


def kept(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[5])


def put(at: tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        weight[at] = value
        return weight

    return change


def test_a_changed_kept_weight_is_named_with_its_place(pruned: Pruned) -> None:
    at = kept(pruned.masks[GATE])
    pruned.change(GATE, lambda weight: put(at, float(weight[at]) * 1.01)(weight))
    with pytest.raises(ProofError, match=rf"gate_proj.weight\[{at[0]}, {at[1]}\] is kept, and is not the base's"):
        pruned.prove()


@pytest.mark.parametrize(("value", "told"), [(-0.0, "−0.0"), (1e-38, "not zero"), (float("nan"), "not zero")])
def test_a_removed_weight_is_nothing_but_positive_zero(value: float, told: str, pruned: Pruned) -> None:
    pruned.change(GATE, put(kept(~pruned.masks[GATE]), value))
    with pytest.raises(ProofError, match=rf"was removed, and is {told}: expected \+0\.0"):
        pruned.prove()


def test_a_change_outside_the_mlps_is_named(pruned: Pruned) -> None:
    pruned.change(OUTSIDE, put((3, 2), 0.5))
    with pytest.raises(
        ProofError, match=r"self_attn.q_proj.weight is not pruned, and differs from the base's at \(3, 2\)"
    ):
        pruned.prove()


def test_updated_weights_are_those_that_were_stored(tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, method="sparsegpt", pattern="2:4")
    pruned.prove()
    at = kept(pruned.masks[GATE])
    pruned.change(GATE, lambda weight: put(at, float(weight[at]) + 0.1)(weight))
    with pytest.raises(ProofError, match="is kept, and is not the updated value"):
        pruned.prove()


def test_new_values_that_the_manifest_does_not_name_are_no_base_times_masks(tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, method="sparsegpt", pattern="2:4")
    with pytest.raises(ProofError, match="is kept, and is not the base's"):
        prove_weights(pruned.base, Checkpoint(pruned.folder), pruned.masks, None)


def test_a_tuned_tensor_is_the_stored_one_and_no_other_may_differ(pruned: Pruned, tmp_path: Path) -> None:
    tuned = pruned.base.load([OUTSIDE])[OUTSIDE] * 2
    save_updates({OUTSIDE: tuned}, pruned.masks, tmp_path / "000.safetensors")
    updates = Updates([tmp_path / "000.safetensors"])
    with pytest.raises(ProofError, match="the updates name .*q_proj.weight, which the masks do not"):
        prove_weights(pruned.base, Checkpoint(pruned.folder), pruned.masks, updates)
    with pytest.raises(ProofError, match=r"q_proj.weight is tuned, and differs from the stored value at \(0, 0\)"):
        prove_weights(pruned.base, Checkpoint(pruned.folder), pruned.masks, updates, [OUTSIDE])
    pruned.change(OUTSIDE, lambda weight: weight * 2)
    prove_weights(pruned.base, Checkpoint(pruned.folder), pruned.masks, updates, [OUTSIDE])
    with pytest.raises(ProofError, match="k_proj.weight is said to be tuned, and there is no new value of it"):
        prove_weights(
            pruned.base,
            Checkpoint(pruned.folder),
            pruned.masks,
            updates,
            [OUTSIDE, OUTSIDE.replace("q_proj", "k_proj")],
        )
    pruned.change(OUTSIDE.replace("q_proj", "k_proj"), put((3, 2), 0.5))
    with pytest.raises(ProofError, match=r"k_proj.weight is not pruned, and differs from the base's at \(3, 2\)"):
        prove_weights(pruned.base, Checkpoint(pruned.folder), pruned.masks, updates, [OUTSIDE])


def test_a_missing_or_additional_tensor_is_named(pruned: Pruned) -> None:
    file = pruned.folder / "model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if name != OUTSIDE}, file, {"format": "pt"})
    with pytest.raises(ProofError, match="q_proj.weight is missing"):
        pruned.prove()
    save_file({**whole, "model.extra.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(ProofError, match="model.extra.weight is not in the base"):
        pruned.prove()


def test_another_type_or_header_is_told(pruned: Pruned) -> None:
    file = pruned.folder / "model.safetensors"
    whole = load_file(file)
    save_file(whole, file, {"format": "pt", "by": "somebody"})
    with pytest.raises(ProofError, match=r"model\.safetensors: the header is not the base's"):
        pruned.prove()
    save_file({**whole, GATE: whole[GATE].half()}, file, {"format": "pt"})
    with pytest.raises(ProofError, match=r"gate_proj.weight is F16 .*the base's is F32"):
        pruned.prove()


def test_masks_of_another_base_are_told(pruned: Pruned) -> None:
    pruned.masks["model.layers.9.mlp.gate_proj.weight"] = pruned.masks[GATE]
    with pytest.raises(ProofError, match=r"layers.9.* belong to another base"):
        pruned.prove()


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "2:4"}, {"pattern": "2:4", "layout": "transposable"}, {"method": "wanda"}]
)
def test_a_mask_with_two_bits_swapped_does_not_hold_its_pattern(options: dict[str, Any], tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, **options)
    mask = pruned.masks[GATE].clone()
    one, other = mask.nonzero()[0], (~mask).nonzero()[-1]
    mask[tuple(one)], mask[tuple(other)] = False, True
    pruned.masks[GATE] = mask
    with pytest.raises(ProofError, match=r"layers.1.mlp.gate_proj.weight \(gate_proj\): .* does not hold along axis"):
        prove_patterns(pruned.manifest, pruned.masks)


@pytest.mark.parametrize("options", [{"method": "magnitude"}, {"allocation": "owl"}])
def test_a_share_other_than_the_manifests_is_told(options: dict[str, Any], tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, **options)
    pruned.masks[GATE] = torch.ones_like(pruned.masks[GATE])
    with pytest.raises(ProofError, match="layer 1: gate_proj has lost 0.000000, and the manifest says"):
        prove_patterns(pruned.manifest, pruned.masks)


def test_a_matrix_nobody_knows_is_not_proved(pruned: Pruned) -> None:
    pruned.masks["model.layers.1.mlp.square.weight"] = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ProofError, match="to know along which axis"):
        prove_patterns(pruned.manifest, pruned.masks)
