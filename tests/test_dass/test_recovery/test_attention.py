"""Attention in float32 under autocast: what it gives, and that both passes see it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from dass.recovery.attention import _attention, attend_in_float32
from tests.models import tiny_model, tiny_tokens
from tests.test_dass.test_recovery.pruned import Pruned, recipe, same


@pytest.mark.parametrize("mask", [None, torch.tensor([[0.0, -torch.inf], [0.0, 0.0]], dtype=torch.bfloat16)])
def test_its_gradient_is_that_of_float32_and_its_answer_has_the_inputs_type(mask: torch.Tensor | None) -> None:
    generator, module = torch.Generator().manual_seed(0), torch.nn.Module()
    narrow = [torch.randn(1, 2, 2, 4, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    wide = [each.detach().float().requires_grad_() for each in narrow]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = _attention(module, narrow[0], narrow[1], narrow[2], mask, is_causal=mask is None)
    expected = functional.scaled_dot_product_attention(
        *(wide[0], wide[1], wide[2]), attn_mask=None if mask is None else mask.float(), is_causal=mask is None
    ).transpose(1, 2)
    assert torch.equal(found, expected.bfloat16())
    found.backward(torch.ones_like(found))
    expected.backward(torch.ones_like(expected))
    for one, other in zip(narrow, wide, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad.bfloat16())


def test_where_no_gradient_is_asked_for_it_is_torchs_own() -> None:
    model: Any = tiny_model("gemma3_text", torch.bfloat16)
    plain = model(tiny_tokens()).logits
    attend_in_float32(model)
    with torch.no_grad():
        assert torch.equal(model(tiny_tokens()).logits, plain)
    assert not torch.equal(model(tiny_tokens()).logits, plain)


def test_a_model_that_attends_by_another_function_is_left_alone() -> None:
    model = tiny_model(attn_implementation="eager")
    attend_in_float32(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_activations_that_were_not_held_are_computed_again_in_the_same_type(family: str, tmp_path: Path) -> None:
    pruned, values = Pruned(tmp_path, family), []
    for again in (False, True):
        asked = recipe(steps=2, activation_checkpointing=again)
        recovery = pruned.recovery(asked, f"again-{again}", autocast=torch.bfloat16)
        recovery.run(lambda _: None)
        values.append(recovery._student.stored_values())
    assert same(*values)
