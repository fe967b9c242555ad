import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import dass
from benchmarks.reference import prune_reference
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.sparsegpt import sparsegpt
from tests.models import LAYERS, tiny_model, tiny_tokens

FAMILIES = ("llama", "mistral", "gemma3_text")


def _pruned(family: str, method: str, pattern: str) -> PreTrainedModel:
    model = tiny_model(family)
    prune_reference(model, tiny_tokens(), method, parse_pattern(pattern))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["dass", "wanda", "magnitude"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4"])
def test_masks_equal_the_engines(family: str, method: str, pattern: str) -> None:
    pruned = _pruned(family, method, pattern).state_dict()
    report = dass.prune(tiny_model(family), tiny_tokens(), method, pattern=pattern)
    assert len(report.keep) == 3 * LAYERS
    for name, keep in report.keep.items():
        # Norms are summed in another order: a near tie may fall either way.
        assert ((pruned[name] != 0) != keep).float().mean() < 0.002, name


def test_only_the_mlp_changes_and_kept_weights_keep_their_bits() -> None:
    base, pruned = tiny_model().state_dict(), _pruned("llama", "dass", "2:4").state_dict()
    for name, value in pruned.items():
        expected = torch.where(value != 0, base[name], 0.0) if ".mlp." in name else base[name]
        assert torch.equal(value, expected), name


def test_sparsegpt_prunes_each_matrix_on_the_gram_matrix_of_its_own_inputs() -> None:
    base = tiny_model()
    mlp = base.model.layers[0].mlp
    seen: dict[str, list[Tensor]] = {"up_proj": [], "down_proj": []}
    for name, inputs in seen.items():
        mlp.get_submodule(name).register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[0].detach().flatten(0, 1))
        )
    for window in tiny_tokens():
        base(input_ids=window[None])
    pruned = _pruned("llama", "sparsegpt", "2:4").model.layers[0].mlp
    for name, parts in seen.items():
        x_TC = torch.cat(parts)
        expected = sparsegpt(mlp.get_submodule(name).weight.detach(), x_TC.T @ x_TC, parse_pattern("2:4"))
        assert torch.allclose(pruned.get_submodule(name).weight, expected.weight_OC, atol=1e-4)


def test_the_comparison_with_the_engine_can_fail() -> None:
    pruned = _pruned("llama", "wanda", "2:4").state_dict()
    report = dass.prune(tiny_model(), tiny_tokens(), "dass", pattern="2:4")
    name = "model.layers.0.mlp.up_proj.weight"
    assert ((pruned[name] != 0) != report.keep[name]).float().mean() > 0.1
    assert torch.equal(report.keep[name], keep_mask(report.keep[name].float(), parse_pattern("2:4"), axis=0))
