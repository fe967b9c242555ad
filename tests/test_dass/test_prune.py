"""`dass.prune` on tiny models of every family."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import dass
from dass.errors import InputError, NumericalError
from tests.models import FAMILIES, INTERMEDIATE, LAYERS, tiny_model, tiny_tokens
from tests.test_dass.reference import reference_prune

PATTERNS = {"unstructured": None, "2:4": (2, 4), "4:8": (4, 8), "1:4": (1, 4), "8:16": (8, 16)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["dass", "wanda", "magnitude"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4"])
def test_masks_equal_those_of_the_published_procedure(family: str, method: str, pattern: str) -> None:
    sparsity = 0.75 if pattern == "1:4" else 0.5
    expected = reference_prune(tiny_model(family).double(), tiny_tokens(), method, sparsity, PATTERNS[pattern])
    model = tiny_model(family).double()
    report = dass.prune(model, tiny_tokens(), method, sparsity, pattern)
    assert report.keep.keys() == expected.keys()
    for name, mask in expected.items():
        assert report.keep[name].shape == mask.shape
        # Scores are float32 in the engine and float64 in the reference: a near tie may fall either way.
        assert (report.keep[name] != mask).float().mean() < 0.002, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_competing_group_keeps_exactly_its_share(family: str, pattern: str) -> None:
    n_m = PATTERNS[pattern]
    report = dass.prune(tiny_model(family), tiny_tokens(), pattern=pattern)
    for name, mask in report.keep.items():
        along_i = mask if "down_proj" in name else mask.T  # (H, I): DaSS competes along I everywhere
        groups = along_i.reshape(-1, n_m[1] if n_m else INTERMEDIATE)
        assert (groups.sum(dim=1) == (n_m[0] if n_m else INTERMEDIATE // 2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_weights_keep_their_bits_and_removed_ones_are_positive_zero(family: str, dtype: torch.dtype) -> None:
    base = tiny_model(family, dtype).state_dict()
    model = tiny_model(family, dtype)
    report = dass.prune(model, tiny_tokens())
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    for name, pruned in model.state_dict().items():
        expected = base[name].view(integer)
        if name in report.keep:
            expected = expected.masked_fill(~report.keep[name], 0)  # +0.0 is all bits zero
        assert torch.equal(pruned.view(integer), expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_come_from_the_pruned_predecessors(family: str) -> None:
    """Pruning twice, layer 0 being pruned already, gives layer 1 the same mask; a dense layer 0 gives another."""
    model = tiny_model(family)
    once = dass.prune(model, tiny_tokens())
    fresh = tiny_model(family)
    fresh.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
    again = dass.prune(fresh, tiny_tokens())
    name = "model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(once.keep[name], again.keep[name])


def test_reports_one_entry_a_layer_with_sane_figures() -> None:
    seen: list[int] = []
    report = dass.prune(tiny_model(), tiny_tokens(), sparsity=0.5, on_layer=lambda layer: seen.append(layer.layer))
    assert seen == list(range(LAYERS)) == [layer.layer for layer in report.layers]
    for layer in report.layers:
        assert layer.sparsity == {"gate_proj": 0.5, "up_proj": 0.5, "down_proj": 0.5}
        assert layer.relative_error is not None
        assert 0.0 < layer.relative_error < 1.5
        assert 0.0 < layer.norm["min"] <= layer.norm["median"] <= layer.norm["max"]
    assert report.sparsity == 0.5


def test_a_lower_sparsity_makes_a_smaller_error() -> None:
    errors = [
        dass.prune(tiny_model(), tiny_tokens(), sparsity=s).layers[0].relative_error or 0.0
        for s in (0.1, 0.3, 0.5, 0.7)
    ]
    assert all(0.0 < low < high for low, high in pairwise(errors))


def test_batches_of_any_size_give_the_same_masks_in_float64() -> None:
    reports = [dass.prune(tiny_model().double(), tiny_tokens(5), batch_tokens=size) for size in (1, 32, 1000)]
    for name in reports[0].keep:
        assert torch.equal(reports[0].keep[name], reports[1].keep[name])
        assert torch.equal(reports[0].keep[name], reports[2].keep[name])


def test_alpha_changes_gate_and_up_only() -> None:
    one, two = (dass.prune(tiny_model(), tiny_tokens(), alpha=alpha) for alpha in (0.5, 1.0))
    assert torch.equal(one.keep["model.layers.0.mlp.down_proj.weight"], two.keep["model.layers.0.mlp.down_proj.weight"])
    assert not torch.equal(one.keep["model.layers.0.mlp.up_proj.weight"], two.keep["model.layers.0.mlp.up_proj.weight"])


def test_the_model_comes_back_in_the_mode_it_came_in() -> None:
    model = tiny_model().train()
    dass.prune(model, tiny_tokens())
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "4:2"}, "keeping 4 of 2"),
        ({"pattern": "a:b"}, 'expected "unstructured"'),
        ({"pattern": "2:3", "sparsity": None}, "not a multiple of M=3"),
        ({"pattern": "2:4", "sparsity": 0.6}, "removes exactly 0.5"),
        ({"sparsity": 0.0}, "between 0 and 1"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"sparsity": float("nan")}, "between 0 and 1"),
        ({"method": "random"}, "expected one of dass, wanda, magnitude, sparsegpt"),
        ({"alpha": -1.0}, "alpha is -1.0"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_changes(arguments: dict[str, object], message: str) -> None:
    model = tiny_model()
    with pytest.raises(InputError, match=message):
        dass.prune(model, tiny_tokens(), **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_tokens_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected whole numbers of shape \(samples, length\)"):
        dass.prune(tiny_model(), tiny_tokens()[0])


def test_a_model_without_glu_is_told_what_was_found() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=32, n_head=4, vocab_size=300)
    with pytest.raises(InputError, match=r"no GLU MLP: found .*mlp\.c_fc"):
        dass.prune(AutoModelForCausalLM.from_config(config), tiny_tokens())


def test_nan_activations_stop_the_run_and_name_the_layer() -> None:
    model = tiny_model()
    model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp: activations are NaN"):
        dass.prune(model, tiny_tokens())
