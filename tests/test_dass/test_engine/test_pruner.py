"""The layer-wise engine: what it looks at, what it changes, what it reports."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dass
from dass.engine.fits import check_fits
from dass.engine.layer_report import LayerResult
from dass.engine.layerwise import Buffering
from dass.engine.pruner import LayerwisePruner
from dass.engine.ranks import Ranks
from dass.errors import InputError
from dass.method.methods import PROJECTIONS
from dass.method.plan import plan
from dass.model.decoder import Decoder
from tests.models import LAYERS, MOE_FAMILIES, tiny_model, tiny_tokens
from tests.test_dass.matrices import check_exact, matrices

SIZE_34: dict[str, Any] = {"hidden_size": 34, "num_attention_heads": 2}
METHODS = ["dass", "wanda", "magnitude", "sparsegpt"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pruner_of(model: Any, tokens: Tensor | None = None, **options: Any) -> LayerwisePruner:
    return LayerwisePruner(Decoder(model), tiny_tokens() if tokens is None else tokens, plan(**options))


def routed(model: Any, index: int, tokens: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    """What enters a layer's mixture (N, H), the experts its own router chooses (N, K), and the experts."""
    mixture, seen = model.model.layers[index].mlp, []
    hook = mixture.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=tokens)
    hook.remove()
    x_NH = seen[0].flatten(0, 1)
    return x_NH, mixture.gate(x_NH)[2], mixture.experts


def norms_by_hand(experts: Any, expert: int, x_NH: Tensor) -> tuple[Tensor, Tensor]:
    gate_IH, up_IH = experts.gate_up_proj[expert].chunk(2)
    z_NI = functional.silu(x_NH @ gate_IH.T) * (x_NH @ up_IH.T)
    return x_NH.norm(dim=0), z_NI.norm(dim=0)


# --- experts


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_an_expert_s_statistics_come_from_exactly_the_tokens_routed_to_it(family: str) -> None:
    model = tiny_model(family)
    pruner = pruner_of(model, min_expert_tokens=0, pattern="2:4")
    pruner.prune_layer(0)
    x_NH, chosen_NK, experts = routed(model, 1, tiny_tokens())  # layer 0 is pruned by now
    dense = {name: value.clone() for name, value in experts.state_dict().items()}
    statistics = pruner.prune_layer(1).statistics
    experts.load_state_dict(dense)
    counts = []
    for expert in range(4):
        seen = statistics[f"model.layers.1.mlp.experts.{expert}"]
        mine_NH = x_NH[(chosen_NK == expert).any(dim=1)]
        norm_x, norm_z = norms_by_hand(experts, expert, mine_NH)
        assert seen.tokens == len(mine_NH)
        assert torch.allclose(seen.norms.x_H, norm_x.double(), rtol=1e-5)
        assert torch.allclose(seen.norms.z_I, norm_z.double(), rtol=1e-5)
        counts.append(seen.tokens)
    assert sum(counts) == 2 * len(x_NH)  # two experts a token
    assert len(set(counts)) > 1


@pytest.mark.parametrize("propagation", ["pruned", "dense"])
@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_an_expert_of_too_few_tokens_is_named(family: str, propagation: str) -> None:
    model = tiny_model(family)
    if propagation == "pruned":
        pruner_of(model, min_expert_tokens=0).prune_layer(0)
    chosen_NK = routed(model, 1, tiny_tokens())[1]
    counts = [int((chosen_NK == expert).any(dim=1).sum()) for expert in range(4)]
    least = min(counts) + 1
    starved = [f"mlp.experts.{expert}" for expert, count in enumerate(counts) if count < least]
    assert 0 < len(starved) < 4
    for limit, expected in ((0, []), (least, starved), (10_000, [f"mlp.experts.{expert}" for expert in range(4)])):
        # Layer 0's experts are judged on the tokens routed to them, or not at all: a limit reaches every layer.
        report = LayerwisePruner(Decoder(model := tiny_model(family)), tiny_tokens(), plan(min_expert_tokens=limit))
        if propagation == "dense":
            layers = dass.prune(model, tiny_tokens(), min_expert_tokens=limit, propagation="dense").layers
            assert layers[1].starved_experts == expected
            continue
        done = pruner_of(tiny_model(family), min_expert_tokens=0).prune_layer(0)
        report.replay_layer(0, done.keep, done.weights)
        result = report.prune_layer(1)
        assert result.report.starved_experts == expected
        check_exact(result.keep)


def test_all_tokens_are_those_of_the_layer() -> None:
    model = tiny_model("mixtral")
    x_NH, _, experts = routed(model, 0, tiny_tokens())
    dense = {name: value.clone() for name, value in experts.state_dict().items()}
    statistics = pruner_of(model, min_expert_tokens=10_000).prune_layer(0).statistics
    experts.load_state_dict(dense)
    for expert in range(4):
        seen = statistics[f"model.layers.0.mlp.experts.{expert}"]
        assert (seen.tokens, seen.starved) == (len(x_NH), True)
        assert torch.allclose(seen.norms.z_I, norms_by_hand(experts, expert, x_NH)[1].double(), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"update": "reconstruct"},
        {"update": "reconstruct-mlp"},
        {"update": "reconstruct", "propagation": "dense"},
    ],
)
def test_an_expert_of_too_few_tokens_keeps_its_values_where_others_are_refitted(options: dict[str, str]) -> None:
    base, model = tiny_model("mixtral").state_dict(), tiny_model("mixtral")
    report = dass.prune(model, tiny_tokens(), min_expert_tokens=32, **options)  # type: ignore[arg-type]
    pruned = model.state_dict()
    for layer in report.layers:
        assert 0 < len(layer.starved_experts) < 4
        for expert in range(4):
            unchanged = []
            for part in ("gate_up_proj", "down_proj"):
                name = f"model.layers.{layer.layer}.mlp.experts.{part}"
                keep = report.keep[name][expert]
                unchanged.append(torch.equal(pruned[name][expert], base[name][expert].masked_fill(~keep, 0.0)))
            assert all(unchanged) == any(unchanged) == (f"mlp.experts.{expert}" in layer.starved_experts)


@pytest.mark.parametrize("update", ["none", "reconstruct", "reconstruct-mlp"])
def test_an_expert_no_token_reaches_is_starved_whatever_the_limit(update: str) -> None:
    model = tiny_model("deepseek_v3")
    for index in (1, 2):
        model.get_buffer(f"model.layers.{index}.mlp.gate.e_score_correction_bias")[3] = -100.0
    report = dass.prune(model, tiny_tokens(), min_expert_tokens=0, update=update)
    assert [layer.starved_experts for layer in report.layers] == [[], ["mlp.experts.3"], ["mlp.experts.3"]]
    check_exact(report.keep)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# --- updates


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_refit_lowers_the_output_error_and_a_joint_one_lowers_it_further(method: str, pattern: str) -> None:
    tokens = tiny_tokens(16, 32)
    errors, masks = [], []
    for update in ("none", "reconstruct", "reconstruct-mlp"):
        result = pruner_of(tiny_model(), tokens, method=method, pattern=pattern, update=update).prune_layer(0)
        errors.append(result.report.relative_error or 0.0)
        masks.append(result.keep)
        assert set(result.weights) == (set(result.keep) if update != "none" or method == "sparsegpt" else set())
        for name, weight in result.weights.items():
            assert not weight[~result.keep[name]].any()
    assert 0.0 < errors[2] <= errors[1] < errors[0]
    assert all(torch.equal(mask, other[name]) for other in masks[1:] for name, mask in masks[0].items())


@pytest.mark.parametrize("family", ["gemma2", "phi3", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("update", ["reconstruct", "reconstruct-mlp"])
def test_zeros_are_where_the_masks_say_after_an_update(family: str, update: str) -> None:
    model = tiny_model(family, torch.bfloat16)
    report = dass.prune(model, tiny_tokens(8, 32), "wanda", update=update, min_expert_tokens=8)
    check_exact(report.keep, method="wanda")
    for name, keep in report.keep.items():
        parameter = model.get_parameter(name).detach()
        assert parameter.dtype == torch.bfloat16
        assert not parameter[~keep].any()
        assert not parameter[~keep].signbit().any()
        assert parameter[keep].count_nonzero() > 0.99 * int(keep.sum())  # a kept weight may round to zero, seldom


def test_a_joint_refit_of_a_biased_mlp_is_refused_and_the_other_works() -> None:
    with pytest.raises(InputError, match=r"the MLP of model\.layers\.0\.mlp has biases. Use update: reconstruct"):
        dass.prune(tiny_model("llama", mlp_bias=True), tiny_tokens(), update="reconstruct-mlp")
    errors = []
    for update in ("none", "reconstruct"):
        model = tiny_model("llama", mlp_bias=True)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        errors.append(pruner_of(model, tiny_tokens(16, 32), update=update).prune_layer(0).report.relative_error or 0.0)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("broken", ["duplicate channels", "a channel of zeros", "few tokens"])
def test_a_singular_hessian_is_damped_more_and_said_so(broken: str) -> None:
    model: Any = tiny_model()
    for layer in model.model.layers:
        if broken == "a channel of zeros":
            layer.post_attention_layernorm.weight[3] = 0.0
        elif broken == "duplicate channels":
            layer.mlp.gate_proj.weight[1], layer.mlp.up_proj.weight[1] = (
                layer.mlp.gate_proj.weight[0],
                layer.mlp.up_proj.weight[0],
            )
    tokens = tiny_tokens(1, 8) if broken == "few tokens" else tiny_tokens(16, 32)
    asked = 1e-9
    report = dass.prune(model, tokens, "sparsegpt", pattern="2:4", damping=asked, update="reconstruct")
    dampings = [layer.damping or 0.0 for layer in report.layers]
    assert min(dampings) >= asked
    assert broken == "a channel of zeros" or max(dampings) > asked  # zeros are set aside, there is nothing to invert
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(input_ids=tokens).logits.isfinite().all()


def test_damping_is_reported_for_sparsegpt_alone() -> None:
    for method in METHODS:
        reports = dass.prune(tiny_model(), tiny_tokens(8, 32), method).layers
        assert {layer.damping for layer in reports} == ({0.01} if method == "sparsegpt" else {None})


# --- layouts


@pytest.mark.parametrize(
    ("layout", "runs"), [("paper", (False, False, True)), ("contraction", (True,) * 3), ("transposable", (True,) * 3)]
)
@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_the_report_says_which_matrices_sparse_tensor_cores_run(
    family: str, layout: str, runs: tuple[bool, bool, bool]
) -> None:
    model = tiny_model(family, torch.bfloat16)
    report = dass.prune(model, tiny_tokens(), pattern="2:4", layout=layout)
    assert all(tuple(layer.runs_2_4.values()) == runs for layer in report.layers)
    weights = {name: model.get_parameter(name).detach() for name in report.keep}
    for _, projection, weight in matrices(weights):
        found = dass.pattern_of(weight)
        assert ("2:4" in map(str, found.along_in)) == runs[PROJECTIONS.index(projection)]
        assert ("2:4" in map(str, found.along_out)) == (layout != "contraction" and projection != "down_proj")


def test_float32_has_no_such_kernel() -> None:
    report = dass.prune(tiny_model(), tiny_tokens(), pattern="2:4", layout="contraction")
    assert not any(any(layer.runs_2_4.values()) for layer in report.layers)


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"pattern": "2:4"}, {"intermediate_size": 66}, r"the intermediate size of model\.layers\.0\.mlp is 66"),
        ({"pattern": "2:4", "method": "wanda"}, SIZE_34, r"the hidden size of model\.layers\.0\.mlp is 34"),
        ({"pattern": "2:4", "layout": "contraction"}, SIZE_34, "the hidden size of .* is 34"),
        ({"pattern": "2:4", "layout": "transposable"}, SIZE_34, "the hidden size of .* is 34"),
        ({"pattern": "3:5"}, {}, "the intermediate size of .* is 64, not a multiple of M=5"),
    ],
)
def test_sizes_that_groups_do_not_tile_are_refused(
    options: dict[str, Any], sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_fits(Decoder(tiny_model(**sizes)), plan(**options))


def test_dass_in_the_papers_layout_never_groups_along_the_hidden_axis() -> None:
    check_exact(dass.prune(tiny_model(**SIZE_34), tiny_tokens(), pattern="2:4").keep, "2:4")


# --- allocation


def with_outliers(layer: int) -> Any:
    """A model one of whose layers has many scores far above the mean."""
    model: Any = tiny_model()
    for name in PROJECTIONS:
        weight = getattr(model.model.layers[layer].mlp, name).weight
        weight.copy_(weight.pow(3) * 25.0)
    return model


@pytest.mark.parametrize("propagation", ["pruned", "dense"])
@pytest.mark.parametrize("options", [{}, {"pattern": "4:8", "owl_bound": 0.2}, {"method": "wanda", "sparsity": 0.6}])
def test_owl_keeps_the_total_and_spares_the_layer_with_outliers(options: dict[str, Any], propagation: str) -> None:
    for spared in range(LAYERS):
        report = dass.prune(with_outliers(spared), tiny_tokens(), allocation="owl", propagation=propagation, **options)
        shares = [layer.sparsity["gate_proj"] for layer in report.layers]
        assert report.sparsity == pytest.approx(options.get("sparsity", 0.5), abs=0.5 / 32)
        assert report.sparsity == pytest.approx(sum(shares) / LAYERS, abs=1e-9)
        assert shares[spared] == min(shares) < max(shares)
        assert len(set(shares)) > 1
        assert all(len(set(layer.sparsity.values())) == 1 for layer in report.layers)
        if "pattern" in options:
            assert {layer.pattern[-2:] for layer in report.layers} == {":8"}
            assert report.sparsity == 0.5


@pytest.mark.parametrize("propagation", ["pruned", "dense"])
@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 0.42), ({"pattern": "4:8", "owl_bound": 0.125}, 0.375), ({"method": "sparsegpt", "owl_bound": 0.2}, 0.3)],
)
def test_sensitivity_keeps_the_total_and_spares_the_layer_that_the_model_cannot(
    options: dict[str, Any], least: float, propagation: str
) -> None:
    spared = 1
    model: Any = tiny_model()
    for index, layer in enumerate(model.model.layers):
        if index != spared:
            layer.mlp.down_proj.weight.mul_(1e-3)  # nearly nothing that could be lost
    asked = {"allocation": "sensitivity", "propagation": propagation, "auto_windows": 1, **options}
    report = dass.prune(model, tiny_tokens(), **asked)
    shares = [layer.sparsity["gate_proj"] for layer in report.layers]
    assert report.sparsity == pytest.approx(0.5, abs=1 / 32)
    assert shares[spared] == min(shares) == pytest.approx(least, abs=1 / 32)
    assert sum(shares) >= LAYERS * (0.5 - 1 / 64)


def test_windows_that_sensitivity_judges_by_are_held_back() -> None:
    tokens = tiny_tokens()
    report = dass.prune(tiny_model(), tokens, allocation="sensitivity", auto_windows=1)
    assert report.sparsity >= 0.49
    with pytest.raises(InputError, match='allocation is "sensitivity" and auto_windows'):
        dass.prune(tiny_model(), tokens, allocation="sensitivity", auto_windows=len(tokens))


def test_a_uniform_allocation_takes_the_same_from_every_layer() -> None:
    report = dass.prune(with_outliers(1), tiny_tokens())
    assert [layer.sparsity["down_proj"] for layer in report.layers] == [0.5] * LAYERS


# --- the pass itself


def test_the_relative_error_is_that_of_the_mlps_output_on_the_same_inputs() -> None:
    model: Any = tiny_model()
    mlp, seen = model.model.layers[0].mlp, []
    hook = mlp.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    model(input_ids=tiny_tokens())
    hook.remove()
    x_BTH, y_BTH = seen[0]
    report = pruner_of(model).prune_layer(0).report
    assert report.relative_error == pytest.approx(float((mlp(x_BTH) - y_BTH).norm() / y_BTH.norm()), rel=1e-5)


@pytest.mark.parametrize(("limit", "windows"), [(1, 1), (16, 1), (40, 2), (64, 4), (10_000, 4)])
@pytest.mark.parametrize("batch_tokens", [16, 48, 1000])
def test_the_relative_error_looks_at_the_first_windows_only(
    limit: int, windows: int, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    seen: list[Tensor] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda _, args, output: seen.append(args[0][:windows]))
    model(input_ids=tiny_tokens())
    hook.remove()
    dense = model.model.layers[0].mlp(seen[0])
    monkeypatch.setattr("dass.engine.layerwise.ERROR_TOKENS", limit)
    pruner = LayerwisePruner(Decoder(model), tiny_tokens(), plan(), buffering=Buffering(batch_tokens))
    report = pruner.prune_layer(0).report
    expected = float((model.model.layers[0].mlp(seen[0]) - dense).norm() / dense.norm())
    assert report.relative_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_how_a_layer_falls_into_halves_is_seen_on_few_tokens(family: str) -> None:
    model: Any = tiny_model(family)
    tokens, seen = tiny_tokens(6, 100), []
    pruner = pruner_of(model, tokens)
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    pruner.prune_layer(0)
    assert seen[:2] == [(1, 64), (1, 64)], "the first and the last window"
    assert sum(shape.numel() for shape in seen[2:]) == tokens.numel(), "attention is computed once"


def test_layers_replayed_leave_the_bits_that_pruning_left() -> None:
    """Of the hidden states, hence of everything behind them."""
    asked: tuple[dict[str, Any], ...] = ({}, {"method": "sparsegpt", "pattern": "2:4", "update": "reconstruct"})
    for options in asked:
        whole = pruner_of(tiny_model("gemma2"), **options)
        done: list[LayerResult] = [whole.prune_layer(index) for index in range(LAYERS)]
        resumed = pruner_of(tiny_model("gemma2"), **options)
        resumed.replay_layer(0, done[0].keep, done[0].weights)
        resumed.replay_layer(1, done[1].keep, done[1].weights)
        last = resumed.prune_layer(2)
        assert all(torch.equal(mask, done[2].keep[name]) for name, mask in last.keep.items())
        assert all(torch.equal(value, done[2].weights[name]) for name, value in last.weights.items())
        assert last.report.relative_error == done[2].report.relative_error
        for name, seen in last.statistics.items():
            assert torch.equal(seen.norms.z_I, done[2].statistics[name].norms.z_I)


def test_layers_out_of_order_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="in order"):
        pruner_of(tiny_model()).prune_layer(1)


def test_a_joint_refit_is_for_one_process() -> None:
    with pytest.raises(InputError, match='update is "reconstruct-mlp" and processes 2: expected 1'):
        LayerwisePruner(Decoder(tiny_model()), tiny_tokens(), plan(update="reconstruct-mlp"), ranks=Ranks(0, 2))


def test_memory_that_runs_out_becomes_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = pruner_of(tiny_model())

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    monkeypatch.setattr(pruner._pass, "collect", full)
    with pytest.raises(InputError, match="Tried to allocate 2.00 GiB.*hidden_states: host or disk.*batch_tokens"):
        pruner.prune_layer(0)
