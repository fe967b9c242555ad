"""Layers that are called with more than hidden states: what a full forward of the whole model gives decides."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import dass
import tests.unlisted
from dass.engine.layerwise import Buffering
from dass.engine.pruner import LayerwisePruner
from dass.engine.run import CheckpointRun
from dass.errors import InputError
from dass.method.plan import plan
from dass.model.decoder import Decoder
from dass.model.glu import find_glus
from dass.model.streaming import StreamedDecoder
from tests.models import tiny_model, tiny_tokens

_GEMMA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300,
    "num_kv_shared_layers": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma4_text": {**_GEMMA, "global_head_dim": 8},  # per-layer embeddings, keys and values shared between layers
    "gemma3n_text": {  # the same, and four streams of hidden states, stacked in front of the windows
        **_GEMMA,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.9, 0.0, 0.9, 0.0],
        "laurel_rank": 4,
    },
    "deepseek_v4": {  # token ids for the router, and streams of hidden states behind the tokens
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "q_lora_rank": 8,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "qk_rope_head_dim": 8,
        "swiglu_limit": 0.5,
    },
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def made(family: str) -> PreTrainedModel:
    model = tiny_model(family, **FAMILIES[family])
    for name, buffer in model.named_buffers():
        if name.endswith("tid2eid"):  # which experts a token id goes to
            buffer.random_(0, 4, generator=torch.Generator().manual_seed(0))
    return model


def norms_of_a_full_forward(model: PreTrainedModel, layer: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """‖z‖ of every MLP of a layer that is a module, the whole model computing all windows at once."""
    seen: dict[str, Tensor] = {}
    hooks = [
        mlp.down.register_forward_pre_hook(
            lambda _, args, name=mlp.name: seen.update({name: args[0].flatten(0, -2).double().norm(dim=0)})
        )
        for mlp in find_glus(layer)
        if mlp.expert is None
    ]
    model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("hidden_states", ["auto", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_many_batches_are_those_of_the_whole_model(
    family: str, hidden_states: Any, tmp_path: Path
) -> None:
    model, tokens = made(family), tiny_tokens(5)
    decoder = Decoder(model)
    buffering = Buffering(32, hidden_states, tmp_path)  # two windows a batch, one in the last
    pruner = LayerwisePruner(decoder, tokens, plan(min_expert_tokens=0), buffering=buffering)
    for index in range(len(decoder)):
        expected = norms_of_a_full_forward(model, decoder.structure(index), tokens)  # the layers in front are pruned
        assert expected
        statistics = pruner.prune_layer(index).statistics
        for name, norm_I in expected.items():
            found = statistics[f"{decoder.layer_name(index)}.{name}"].norms.z_I
            assert torch.allclose(found, norm_I, rtol=1e-5, atol=1e-7), (index, name)


@pytest.mark.parametrize("family", ["gemma4_text", "gemma3n_text"])
def test_one_batch_and_many_give_the_same_masks_in_memory_and_on_disk(family: str, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    tokens = tiny_tokens(5)
    keep = dass.prune(made(family), tokens).keep
    many = dass.prune(model, tokens, batch_tokens=16).keep
    assert sum(int((keep[name] != many[name]).sum()) for name in keep) <= 2  # float32: a tie may fall either way
    dass.prune_checkpoint(tmp_path / "base", tmp_path / "pruned", tokens, batch_tokens=16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype="auto").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_clamped_mlp_is_not_refitted() -> None:
    with pytest.raises(InputError, match=r'update is "reconstruct", and the MLP of model\.layers\.0\.mlp.* does more'):
        dass.prune(made("gemma3n_text"), tiny_tokens(), update="reconstruct")
    with pytest.raises(InputError, match="does more than act"):
        dass.prune(made("deepseek_v4"), tiny_tokens(), update="reconstruct")
    assert all(mlp.is_plain for mlp in find_glus(Decoder(tiny_model("phi3")).structure(0)))


def test_a_resumed_run_has_the_keys_and_values_of_layers_in_front(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hidden states saved behind layer 3 say nothing of the keys and values that layer 3 takes from layer 1."""
    made("gemma4_text").save_pretrained(tmp_path / "base")
    decoder = StreamedDecoder(tmp_path / "base", torch.device("cpu"))

    def run(folder: str) -> CheckpointRun:
        return CheckpointRun(
            decoder, tiny_tokens(), plan(), tmp_path / folder, buffering=Buffering(32), checkpoint_every=1
        )

    whole, broken = run("whole"), run("broken")
    caplog.set_level(logging.INFO, "dass")
    for index in range(4):
        whole.layer(index)
    for index in range(3):
        broken.layer(index)
    assert "needs more than hidden states" in caplog.text
    resumed = run("broken")
    assert resumed.finished == 3
    for index in range(4):
        resumed.layer(index)
    assert all(torch.equal(resumed.masks[name], whole.masks[name]) for name in whole.masks)
    for name, norm in whole.norms().items():
        assert torch.equal(resumed.norms()[name], norm), name


# --- layers that cannot be run one by one are named


def _unlisted(monkeypatch: pytest.MonkeyPatch, forward: Any) -> PreTrainedModel:
    """A model whose forward is this loop over its blocks."""

    def whole(self: Any, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=forward(self, self.tokens(input_ids)))

    def block(self: Any, hidden_BTH: Tensor, more: Any = None) -> Any:
        out = hidden_BTH + self.mixer(self.first(hidden_BTH)) * (1.0 if more is None else more.mean())
        return out + self.feed(self.second(out))

    monkeypatch.setattr(tests.unlisted.UnlistedModel, "forward", whole)
    monkeypatch.setattr(tests.unlisted.Block, "forward", block)
    return tiny_model("unlisted")


def _passes_on(self: Any, hidden: Tensor) -> Tensor:
    before = hidden
    for block in self.blocks:
        hidden, before = block(hidden, more=before), hidden
    return hidden


def _changes_between(self: Any, hidden: Tensor) -> Tensor:
    for block in self.blocks:
        hidden = 2.0 * block(hidden)
    return hidden


def _loops(self: Any, hidden: Tensor) -> Tensor:
    for _ in range(2):
        for block in self.blocks:
            hidden = block(hidden)
    return hidden


def _skips(self: Any, hidden: Tensor) -> Tensor:
    for block in self.blocks[:2]:
        hidden = block(hidden)
    return hidden


def _unpacks(self: Any, hidden: Tensor) -> Tensor:
    for block in self.blocks:
        hidden, _ = block(hidden)
    return hidden


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_passes_on, r"trunk\.blocks\.2 is called with more, which depends on what earlier layers put out"),
        (_changes_between, r"changes the hidden states between trunk\.blocks\.0 and \.1"),
        (_loops, r"calls trunk\.blocks\.0 when layer 3 is due"),
        (_skips, r"calls 2 of its 3 trunk\.blocks"),
        (_unpacks, "hand on more than hidden states"),
    ],
)
def test_layers_that_are_no_plain_chain_are_refused(
    forward: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _unlisted(monkeypatch, forward)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        dass.prune(model, tiny_tokens())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_return_tuples_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dass.prune(tiny_model("unlisted"), tiny_tokens()).keep

    def forward(self: Any, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden

    model = _unlisted(monkeypatch, forward)
    plain = tests.unlisted.Block.forward
    monkeypatch.setattr(tests.unlisted.Block, "forward", lambda self, hidden: (plain(self, hidden),))
    found = dass.prune(model, tiny_tokens()).keep
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())
