"""One MLP: masks and new values from its statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dass.masks.detect import pattern_of, runs_on_sparse_tensor_cores
from dass.method.gram import gram
from dass.method.mask import keep_mask
from dass.method.methods import PROJECTIONS, Projection
from dass.method.mlp import PrunedMlp, prune_mlp, refit_down, refit_inputs
from dass.method.pattern import parse_pattern
from dass.method.plan import Plan, plan
from dass.method.reconstruct import Equations
from dass.method.score import ActivationNorms
from dass.method.statistics import MlpStatistics

INTERMEDIATE, HIDDEN, TOKENS = 32, 16, 600
METHODS = ["dass", "wanda", "magnitude", "sparsegpt"]


def tokens(columns: int = HIDDEN, seed: int = 0) -> Tensor:
    """Correlated inputs (TOKENS, columns), of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) + torch.eye(columns)
    return torch.randn(TOKENS, columns, generator=generator) @ mixing * torch.logspace(-1, 1, columns)


def weights(dtype: torch.dtype = torch.float32) -> dict[Projection, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }
    made = {name: 0.3 * torch.randn(shapes[name], generator=generator) for name in PROJECTIONS}
    return {name: weight.to(dtype) for name, weight in made.items()}


def intermediate(values: dict[Projection, Tensor], x: Tensor) -> Tensor:
    gate, up = (x @ values[name].float().T for name in ("gate_proj", "up_proj"))
    return torch.nn.functional.silu(gate) * up


def seen(dense: dict[Projection, Tensor], x: Tensor) -> MlpStatistics:
    z = intermediate(dense, x)
    return MlpStatistics(len(x), ActivationNorms(x.double().norm(dim=0), z.double().norm(dim=0)), gram(x), gram(z))


def equations(statistics: MlpStatistics) -> Equations:
    assert statistics.gram_x_HH is not None
    return Equations(statistics.tokens, statistics.gram_x_HH)


def pruned(what: Plan, dense: dict[Projection, Tensor], x: Tensor) -> PrunedMlp:
    return prune_mlp(dense, seen(dense, x), what, what.pattern)


def values_of(made: PrunedMlp, dense: dict[Projection, Tensor]) -> dict[Projection, Tensor]:
    return {name: made.weights.get(name, dense[name] * made.keep[name]) for name in PROJECTIONS}


def error(new: Tensor, old: Tensor, x: Tensor) -> float:
    return float((x @ (new.float() - old.float()).T).norm() / (x @ old.float().T).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4"])
@pytest.mark.parametrize("method", METHODS)
def test_only_sparsegpt_changes_values(method: str, pattern: str, dtype: torch.dtype) -> None:
    dense = weights(dtype)
    before = {name: weight.clone() for name, weight in dense.items()}
    made = pruned(plan(method, pattern=pattern), dense, tokens())
    assert (made.damping is not None) == bool(made.weights) == (method == "sparsegpt")
    assert all(torch.equal(dense[name], before[name]) for name in PROJECTIONS)
    for name, weight in made.weights.items():
        assert weight.dtype == dtype
        assert torch.equal(weight != 0, made.keep[name])
        assert not torch.equal(weight, dense[name] * made.keep[name])


def test_sparsegpt_has_a_smaller_error_than_wanda_at_the_same_pattern() -> None:
    dense, x = weights(), tokens()
    z = intermediate(dense, x)
    for pattern in ("2:4", "unstructured"):
        wanda, gpt = (
            values_of(pruned(plan(method, pattern=pattern), dense, x), dense) for method in ("wanda", "sparsegpt")
        )
        for name in PROJECTIONS:
            inputs = z if name == "down_proj" else x
            assert error(gpt[name], dense[name], inputs) < error(wanda[name], dense[name], inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_refit_lowers_every_matrix_s_error_and_keeps_the_mask(method: str, pattern: str, dtype: torch.dtype) -> None:
    dense, x = weights(dtype), tokens()
    what = plan(method, pattern=pattern, update="reconstruct")
    made = pruned(what, dense, x)
    statistics = seen(dense, x)
    inputs = refit_inputs(made, dense, equations(statistics), what)
    z = intermediate(values_of(inputs, dense), x)
    y = intermediate(dense, x) @ dense["down_proj"].float().T
    fitted = refit_down(inputs, dense, Equations(len(z), gram(z), gram(z, y)), what)
    before, after = values_of(made, dense), values_of(fitted, dense)
    for name in ("gate_proj", "up_proj"):
        assert error(after[name], dense[name], x) < error(before[name], dense[name], x)
    masked_down = float((z @ before["down_proj"].float().T - y).norm())
    assert float((z @ after["down_proj"].float().T - y).norm()) < masked_down
    for name in PROJECTIONS:
        assert after[name].dtype == dtype
        assert not after[name][~made.keep[name]].any()
        assert torch.equal(fitted.keep[name], made.keep[name])


def test_a_refit_of_down_without_a_moment_aims_at_the_dense_down() -> None:
    dense, x = weights(), tokens()
    what = plan(update="reconstruct", propagation="dense")
    made, z = pruned(what, dense, x), intermediate(dense, x)
    moment = gram(z, z @ dense["down_proj"].T)
    implied = refit_down(made, dense, Equations(len(z), gram(z)), what).weights["down_proj"]
    given = refit_down(made, dense, Equations(len(z), gram(z), moment), what).weights["down_proj"]
    assert torch.allclose(implied, given, atol=1e-4)


def test_damping_of_the_plan_reaches_both() -> None:
    dense, x = weights(), tokens()
    assert pruned(plan("sparsegpt", damping=0.5), dense, x).damping == 0.5
    assert pruned(plan("sparsegpt"), dense, x).damping == 0.01
    strong, weak = (
        refit_inputs(pruned(what, dense, x), dense, equations(seen(dense, x)), what).weights["up_proj"]
        for what in (plan(update="reconstruct", damping=damping) for damping in (10.0, 0.001))
    )
    keep = pruned(plan(), dense, x).keep["up_proj"]
    near, far = ((each - dense["up_proj"])[keep].norm() for each in (strong, weak))
    assert near < 0.5 * far  # damping holds weights near their dense values


def test_tokens_held_back_choose_the_damping_of_every_matrix() -> None:
    dense, x = weights(), tokens()
    made, other = pruned(plan(), dense, x), tokens(seed=1)
    fitted, held_back = (Equations(len(each), gram(each)) for each in (x, other))
    chosen = refit_inputs(made, dense, fitted, plan(update="reconstruct"), held_back)
    assert chosen.refit_damping.keys() == {"gate_proj", "up_proj"}
    assert refit_inputs(made, dense, fitted, plan(update="reconstruct")).refit_damping == {}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("broken", ["duplicates", "zeros", "few tokens"])
def test_a_singular_hessian_takes_more_damping_and_makes_no_nan(broken: str, pattern: str) -> None:
    dense, x = weights(), tokens()
    if broken == "duplicates":
        x[:, 8:] = x[:, :8]
    elif broken == "zeros":
        x[:, :8] = 0.0
    else:
        x = x[:3]
    what = plan("sparsegpt", pattern=pattern, damping=1e-9, update="reconstruct")
    made = pruned(what, dense, x)
    if broken == "zeros":  # a channel that is always zero is set aside instead
        assert made.damping is not None
    else:
        assert made.damping is not None
        assert made.damping > 1e-9
    fitted = refit_inputs(made, dense, equations(seen(dense, x)), what)
    assert all(weight.isfinite().all() for weight in fitted.weights.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_transposable_layout_is_2_4_along_both_axes_of_gate_and_up(method: str) -> None:
    dense = weights(torch.bfloat16)
    made = pruned(plan(method, pattern="2:4", layout="transposable"), dense, tokens())
    for name in PROJECTIONS:
        mask = made.keep[name]
        assert (mask.reshape(mask.shape[0], -1, 4).sum(dim=2) == 2).all()
        assert runs_on_sparse_tensor_cores(mask, torch.bfloat16)
        assert "2:4" in map(str, pattern_of(values_of(made, dense)[name]).along_in)
        if name != "down_proj":
            assert (mask.reshape(-1, 4, mask.shape[1]).sum(dim=1) == 2).all()
            assert "2:4" in map(str, pattern_of(values_of(made, dense)[name]).along_out)


def test_the_papers_layout_runs_for_down_only() -> None:
    dense = weights(torch.bfloat16)
    made = pruned(plan(pattern="2:4"), dense, tokens())
    assert [runs_on_sparse_tensor_cores(made.keep[name], torch.bfloat16) for name in PROJECTIONS] == [
        False,
        False,
        True,
    ]
    for name in ("gate_proj", "up_proj"):
        found = pattern_of(values_of(made, dense)[name])
        assert ([*map(str, found.along_out)], "2:4" in map(str, found.along_in)) == (["2:4"], False)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_the_contraction_layout_makes_wandas_choice_inside_each_group(pattern: str) -> None:
    dense, x = weights(), tokens()
    made = pruned(plan(pattern=pattern, layout="contraction"), dense, x)
    for name in PROJECTIONS:
        inputs = intermediate(dense, x) if name == "down_proj" else x
        score = dense[name].abs() * inputs.norm(dim=0)
        assert torch.equal(made.keep[name], keep_mask(score, parse_pattern(pattern), 1))


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "5:8"])
@pytest.mark.parametrize("layout", ["paper", "contraction"])
@pytest.mark.parametrize("method", METHODS)
def test_every_group_keeps_n_of_m(method: str, layout: str, pattern: str) -> None:
    made = pruned(plan(method, pattern=pattern, layout=layout), weights(), tokens())
    keep, group = map(int, pattern.split(":"))
    for name, mask in made.keep.items():
        along_out = method == "dass" and layout == "paper" and name != "down_proj"
        assert ((mask.T if along_out else mask).reshape(-1, group).sum(dim=1) == keep).all()


def test_the_layer_s_pattern_counts_not_the_plans() -> None:
    dense = weights()
    options: dict[str, Any] = {"allocation": "owl"}
    made = prune_mlp(dense, seen(dense, tokens()), plan(**options), parse_pattern("unstructured", 0.25))
    assert {int(mask.sum()) for mask in made.keep.values()} == {INTERMEDIATE * HIDDEN * 3 // 4}
