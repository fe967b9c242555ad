"""A caller's model comes back as it was, but for its masks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import dass
from dass.errors import InputError, NumericalError
from tests.models import tiny_model, tiny_tokens

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {"output_router_logits": True}),
    ("llama", {"output_hidden_states": True}),
    ("llama", {"output_attentions": True, "attn_implementation": "eager", "use_cache": False}),
]


@pytest.mark.parametrize(("family", "settings"), SETTINGS)
def test_a_pruned_model_puts_out_what_an_untouched_one_with_its_masks_does(
    family: str, settings: dict[str, Any]
) -> None:
    model, untouched = tiny_model(family, **settings), tiny_model(family, **settings)
    keep = dass.prune(model, tiny_tokens(), batch_tokens=16).keep
    with torch.no_grad():
        for name, mask in keep.items():
            untouched.get_parameter(name).mul_(mask)
        found, expected = model(input_ids=tiny_tokens()), untouched(input_ids=tiny_tokens())
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        several, others = (each if isinstance(each, tuple) else (each,) for each in (value, found[key]))
        assert len(several) == len(others), key
        if isinstance(several[0], torch.Tensor):
            assert all(torch.equal(*pair) for pair in zip(several, others, strict=True)), key
    assert model.config.to_dict() == untouched.config.to_dict()


def state_of(model: PreTrainedModel) -> list[Any]:
    return [
        [(name, module.training, sorted(module.__dict__)) for name, module in model.named_modules()],
        [dict(module._forward_hooks) for module in model.modules()],
        [dict(module._forward_pre_hooks) for module in model.modules()],
        [(name, id(value), value.requires_grad, id(value.grad)) for name, value in model.named_parameters()],
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_hooks_gradients_and_ties_stay(fails: bool) -> None:
    model: Any = tiny_model("llama").train()
    model.model.layers[1].eval()  # frozen by the caller
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    model(input_ids=tiny_tokens(), labels=tiny_tokens()).loss.backward()
    calls: list[Any] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model.model.layers[0].register_forward_hook(lambda *_: calls.append("behind"))
    if fails:
        model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    before = state_of(model)
    if fails:
        with pytest.raises(NumericalError, match=r"layers\.1"):
            dass.prune(model, tiny_tokens())
    else:
        dass.prune(model, tiny_tokens())
    assert state_of(model) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_layer_s_own_hook_is_heeded_once() -> None:
    """A pre-hook that steers the first layer is part of the forward, once a run of the layer."""
    model: Any = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0] + 1.0, *args[1:]))
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(input_ids=tiny_tokens())
        hook.remove()
    norm = dass.prune(model, tiny_tokens()).layers[0].norm
    assert norm["max"] == pytest.approx(float(seen[0].flatten(0, 1).norm(dim=0).max()), rel=1e-4)


def test_layers_that_were_compiled_stay_so_and_are_not_compiled_here() -> None:
    model: Any = tiny_model()
    model.model.layers[0].compile()
    compiled = model.model.layers[0]._compiled_call_impl
    assert compiled is not None
    expected = dass.prune(tiny_model(), tiny_tokens()).keep
    keep = dass.prune(model, tiny_tokens()).keep
    assert model.model.layers[0]._compiled_call_impl is compiled
    assert all(torch.equal(mask, keep[name]) for name, mask in expected.items())


def _on_meta(model: Any) -> Any:
    return model.to("meta")


def _adapted(model: Any) -> Any:
    model._hf_peft_config_loaded = True
    return model


def _quantized(model: Any) -> Any:
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.compile, r"model is compiled .*model\._orig_mod"),
        (nn.DataParallel, r"model is a DataParallel.*Pass model\.module"),
        (lambda _: "folder/of/a/checkpoint", r"model is a str.*dass\.prune_checkpoint"),
        (lambda model: model.state_dict(), "model is a OrderedDict: expected a transformers model"),
        (lambda _: None, "model is a NoneType"),
        (_on_meta, "weights that are not in memory"),
        (_adapted, "carries adapters"),
        (_quantized, r"up_proj\.weight is torch\.int8"),
    ],
)
def test_what_cannot_be_pruned_in_place_is_named(change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dass.prune(change(tiny_model()), tiny_tokens())


def test_layers_that_share_an_mlp_are_named() -> None:
    model: Any = tiny_model()
    model.model.layers[2].mlp = model.model.layers[0].mlp
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.\w+\.weight is shared with model\.layers\.0\.mlp"):
        dass.prune(model, tiny_tokens())
