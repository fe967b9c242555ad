"""A decoder layer in two halves computes what it computes whole."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dass
import tests.unlisted
from dass.model.calls import LayerCall
from dass.model.decoder import Decoder
from dass.model.layer import LayerRunner
from tests.models import EVERY_FAMILY, HIDDEN, tiny_model, tiny_tokens

FAMILIES = [*EVERY_FAMILY, "unlisted"]
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def opened(family: str, index: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor, LayerCall]:
    """A layer, hidden states that may enter it, and how it is called."""
    decoder = Decoder(tiny_model(family, dtype))
    hidden_BTH, calls = decoder.embed(tiny_tokens())
    return decoder.structure(index), hidden_BTH, calls[index]


class Parallel(nn.Module):
    """Attention and MLP side by side: no halves."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first: Any = block.first
        self.mixer: Any = block.mixer
        self.feed: Any = block.feed

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        x_BTH = self.first(hidden_BTH)
        y: Tensor = hidden_BTH + self.mixer(x_BTH) + self.feed(x_BTH)
        return y


class Scaled(nn.Module):
    """A layer whose MLP output is scaled before it is added: looks like halves, and is not."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first: Any = block.first
        self.second: Any = block.second
        self.mixer: Any = block.mixer
        self.feed: Any = block.feed

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        hidden_BTH = hidden_BTH + self.mixer(self.first(hidden_BTH))
        y: Tensor = hidden_BTH + 0.5 * self.feed(self.second(hidden_BTH))
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_splits_into_halves_that_make_the_whole(family: str, dtype: torch.dtype) -> None:
    layer, hidden, call = opened(family, dtype=dtype)
    runner = LayerRunner(layer, hidden, call)
    assert runner.splits
    output, y = runner.advance(runner.attention_half(hidden, call), call)
    assert torch.equal(output, call(layer, hidden))
    assert y.shape == hidden.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_half_does_not_depend_on_the_mlp(family: str) -> None:
    layer, hidden, call = opened(family)
    runner = LayerRunner(layer, hidden, call)
    before = runner.attention_half(hidden, call)
    for mlp in runner.mlps:
        for weight in mlp.weights().values():
            weight.zero_()
    assert torch.equal(runner.attention_half(hidden, call), before)
    assert not torch.equal(before, hidden)


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_mlp_is_shown_once_a_batch(family: str, finish: bool) -> None:
    layer, hidden, call = opened(family)
    runner = LayerRunner(layer, hidden, call)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def see(which: int, x: Tensor, z: Tensor) -> None:
        assert which not in seen
        seen[which] = x, z

    done = runner.observe(runner.attention_half(hidden, call), call, see, finish=finish)
    assert (done is not None) == finish
    for which, (x, z) in seen.items():
        mlp = runner.mlps[which]
        assert x.shape[:-1] == z.shape[:-1]
        assert (z.shape[-1], x.shape[-1]) == mlp.sizes
        if family != "unlisted":
            assert torch.allclose(z, mlp.intermediate(x, mlp.weights()), rtol=1e-4, atol=1e-5)
    if family not in MIXTURES:
        assert list(seen) == [0]
    if done is not None:
        assert torch.equal(done[0], call(layer, hidden))


def test_a_look_does_not_compute_the_down_projection() -> None:
    layer, hidden, call = opened("llama")
    runner = LayerRunner(layer, hidden, call)
    mid = runner.attention_half(hidden, call)
    calls: list[str] = []
    layer.get_submodule("mlp.down_proj").register_forward_hook(lambda *_: calls.append("down"))
    layer.get_submodule("mlp.up_proj").register_forward_hook(lambda *_: calls.append("up"))
    runner.observe(mid, call, lambda *_: None)
    assert calls == ["up"]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_stays_behind(family: str) -> None:
    layer, hidden, call = opened(family)
    runner = LayerRunner(layer, hidden, call)
    mid = runner.attention_half(hidden, call)
    runner.observe(mid, call, lambda *_: None)
    runner.advance(mid, call)
    experts = [which for which, mlp in enumerate(runner.mlps) if mlp.is_expert]
    if experts:
        runner.observe_all_tokens(mid, call, experts, lambda *_: None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_is_shown_exactly_the_tokens_its_router_sends_it(family: str) -> None:
    layer, hidden, call = opened(family)
    runner = LayerRunner(layer, hidden, call)
    mid = runner.attention_half(hidden, call)
    shown = {}
    runner.observe(mid, call, lambda which, x, z: shown.update({runner.mlps[which].name: x}))
    router, x_NH = layer.get_submodule("mlp.gate"), layer.post_attention_layernorm(mid).flatten(0, 1)
    chosen_NK = router(x_NH)[2]
    for expert in range(4):
        expected = torch.stack([x for x, chosen in zip(x_NH, chosen_NK, strict=True) if expert in chosen.tolist()])
        assert torch.equal(shown[f"mlp.experts.{expert}"], expected)
    assert sum(len(x) for name, x in shown.items() if ".experts." in name) == chosen_NK.numel()
    for name in shown.keys() - {f"mlp.experts.{expert}" for expert in range(4)}:  # shared experts see all
        assert torch.equal(shown[name].flatten(0, -2), x_NH)


@pytest.mark.parametrize("family", MIXTURES)
def test_all_tokens_are_every_token_of_the_layer(family: str) -> None:
    layer, hidden, call = opened(family)
    runner = LayerRunner(layer, hidden, call)
    mid = runner.attention_half(hidden, call)
    shown: dict[int, tuple[Tensor, Tensor]] = {}
    runner.observe_all_tokens(mid, call, [1, 3], lambda which, x, z: shown.update({which: (x, z)}))
    assert sorted(shown) == [1, 3]
    expected = layer.post_attention_layernorm(mid).flatten(0, 1)
    for which, (x, z) in shown.items():
        assert torch.equal(x.flatten(0, -2), expected)
        assert torch.allclose(z, runner.mlps[which].intermediate(x, runner.mlps[which].weights()))


class Expert(nn.Module):
    """One expert of a mixture of modules, called with its tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(HIDDEN, 16, bias=False), nn.Linear(HIDDEN, 16, bias=False)
        self.w2, self.act_fn = nn.Linear(16, HIDDEN, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(self.act_fn(self.w1(x)) * self.w3(x))
        return y


class Mixture(nn.Module):
    """Token t of a window goes to expert t mod 3; the fourth gets none and is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x_BTH: Tensor) -> Tensor:
        y_BTH = torch.zeros_like(x_BTH)
        for which in range(3):
            y_BTH[:, which::3] = self.experts[which](x_BTH[:, which::3])
        return y_BTH


def test_experts_that_are_modules_are_shown_their_tokens_and_all_tokens() -> None:
    layer, hidden, call = opened("unlisted")
    layer.feed = Mixture()
    runner = LayerRunner(layer, hidden, call)
    assert runner.splits
    mid = runner.attention_half(hidden, call)
    x_BTH = layer.second(mid)
    shown: dict[int, Tensor] = {}
    runner.observe(mid, call, lambda which, x, z: shown.update({which: x}))
    assert sorted(shown) == [0, 1, 2]
    assert all(torch.equal(shown[which], x_BTH[:, which::3]) for which in range(3))
    every: dict[int, tuple[Tensor, Tensor]] = {}
    runner.observe_all_tokens(mid, call, [0, 3], lambda which, x, z: every.update({which: (x, z)}))
    assert sorted(every) == [0, 3]
    for which, (x, z) in every.items():
        assert torch.equal(x, x_BTH)
        expert = layer.feed.experts[which]
        assert torch.allclose(expert.w2(z), expert(x_BTH), atol=1e-6)


@pytest.mark.parametrize("shape", [Parallel, Scaled])
def test_a_layer_without_halves_is_found_out_and_run_whole(shape: type[nn.Module]) -> None:
    block, hidden, call = opened("unlisted")
    layer: Any = shape(block)
    runner = LayerRunner(layer, hidden, call)
    assert not runner.splits
    seen: list[Tensor] = []
    done = runner.observe(hidden, call, lambda which, x, z: seen.append(z), finish=True)
    assert done is not None
    assert torch.equal(done[0], layer(hidden))
    assert torch.equal(done[1], block.feed.drop(seen[0]))
    assert runner.observe(hidden, call, lambda *_: None) is None


@pytest.mark.parametrize("shape", [Parallel, Scaled])
def test_a_model_of_such_layers_is_pruned_with_the_same_statistics(
    shape: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain way gives the same masks: layer by layer, whole forwards, one hook."""
    original = tests.unlisted.Block.__init__

    def made(self: Any, config: Any) -> None:
        original(self, config)
        self.inner = [shape(self)]  # in a list: no submodule of its own

    monkeypatch.setattr(tests.unlisted.Block, "__init__", made)
    monkeypatch.setattr(tests.unlisted.Block, "forward", lambda self, hidden: self.inner[0](hidden))
    report = dass.prune(tiny_model("unlisted").double(), tiny_tokens())
    model = tiny_model("unlisted").double()
    blocks: Any = model.get_submodule("trunk.blocks")
    for index, block in enumerate(blocks):
        seen: list[Tensor] = []
        hook = block.feed.drop.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(input_ids=tiny_tokens())
        hook.remove()
        norm_I = seen[0].flatten(0, 1).norm(dim=0)
        score_HI = block.feed.drop.weight.abs() * norm_I
        removed = score_HI.argsort(dim=1)[:, : score_HI.shape[1] // 2]
        keep = torch.ones_like(score_HI, dtype=torch.bool).scatter_(1, removed, False)
        actual = report.keep[f"trunk.blocks.{index}.feed.drop.weight"]
        assert (actual != keep).float().mean() < 0.002
        for name in ("gate", "lift", "drop"):
            getattr(block.feed, name).weight.mul_(report.keep[f"trunk.blocks.{index}.feed.{name}.weight"])


def test_a_nan_does_not_hide_the_halves() -> None:
    """NaN is reported by the engine with the layer's name; it must not send the layer down the slow way first."""
    layer, hidden, call = opened("llama")
    hidden[0, 3] = float("nan")
    assert LayerRunner(layer, hidden, call).splits


def test_hidden_states_of_another_batch_size_run_through_the_same_halves() -> None:
    decoder = Decoder(tiny_model("gemma2"))
    layer, runner = decoder.structure(1), None
    for windows in (4, 1):
        hidden, calls = decoder.embed(tiny_tokens(windows))
        runner = runner or LayerRunner(layer, hidden, calls[1])
        output, _ = runner.advance(runner.attention_half(hidden, calls[1]), calls[1])
        assert output.shape == (windows, 16, HIDDEN)
        assert torch.equal(output, calls[1](layer, hidden))
