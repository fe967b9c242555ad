import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dass.errors import InputError, NumericalError
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.reconstruct_mlp import refit_mlp

HIDDEN, INTERMEDIATE, TOKENS = 16, 48, 512


def _mlp(weights, x):
    gate, up, down = (weights[name].to(x.dtype) for name in ("gate_proj", "up_proj", "down_proj"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _case(dtype=torch.float32):
    """A dense MLP, its tokens and output, its masks and masked weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "gate_proj": (INTERMEDIATE, HIDDEN),
        "up_proj": (INTERMEDIATE, HIDDEN),
        "down_proj": (HIDDEN, INTERMEDIATE),
    }
    dense = {name: (torch.randn(shape, generator=generator) * 0.3).to(dtype) for name, shape in shapes.items()}
    x = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    keep = {name: keep_mask(w.abs(), parse_pattern("2:4"), 1) for name, w in dense.items()}
    return {name: dense[name] * keep[name] for name in dense}, keep, x, _mlp(dense, x)


def _error(weights, x, y) -> float:
    return float((_mlp(weights, x).float() - y.float()).norm() / y.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lowers_the_error_inside_the_masks(dtype):
    weights, keep, x, y = _case(dtype)
    found = refit_mlp(weights, keep, x, y, F.silu, batch_tokens=128)
    assert found.error_before == pytest.approx(_error(weights, x, y), rel=1e-3)
    assert found.error_after == pytest.approx(_error(found.weights, x, y), rel=1e-3)
    assert found.error_after < 0.75 * found.error_before
    for name, weight in found.weights.items():
        assert weight.dtype == dtype
        assert not weight.requires_grad
        assert (weight[~keep[name]] == 0).all()
        assert not weight[~keep[name]].signbit().any()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    weights, keep, x, y = _case()
    one, same, other = (refit_mlp(weights, keep, x, y, F.silu, steps=20, batch_tokens=64, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(one.weights[name], same.weights[name]) for name in keep)
    assert not torch.equal(one.weights["up_proj"], other.weights["up_proj"])


def test_inputs_are_left_as_they_were():
    weights, keep, x, y = _case()
    before = {name: weight.clone() for name, weight in weights.items()}
    refit_mlp(weights, keep, x, y, F.silu, steps=5)
    assert all(torch.equal(weights[name], before[name]) for name in keep)


@pytest.mark.parametrize("learning_rate", [1e3, 1e30])
def test_a_rate_that_diverges_returns_the_start(learning_rate):
    weights, keep, x, y = _case()
    found = refit_mlp(weights, keep, x, y, F.silu, steps=16, learning_rate=learning_rate)
    assert found.error_after == found.error_before
    assert all(torch.equal(found.weights[name], weights[name]) for name in keep)


def test_important_tokens_are_fitted_better():
    weights, keep, x, y = _case()
    importance = torch.full((TOKENS,), 1e-3)
    importance[:32] = 1.0
    plain = refit_mlp(weights, keep, x, y, F.silu, batch_tokens=128)
    found = refit_mlp(weights, keep, x, y, F.silu, batch_tokens=128, importance_T=importance)
    assert _error(found.weights, x[:32], y[:32]) < _error(plain.weights, x[:32], y[:32])


def test_scaling_weights_and_outputs_scales_the_answer():
    weights, keep, x, y = _case()
    scaled = weights | {"down_proj": weights["down_proj"] * 1024}
    one = refit_mlp(weights, keep, x, y, F.silu, steps=40)
    other = refit_mlp(scaled, keep, x, y * 1024, F.silu, steps=40)
    assert other.error_after == pytest.approx(one.error_after, rel=1e-2)


def test_nothing_to_fit_returns_the_start():
    weights, keep, x, _ = _case()
    assert refit_mlp(weights, keep, x, _mlp(weights, x), F.silu).error_after == 0.0
    no_target = refit_mlp(weights, keep, x, torch.zeros_like(x), F.silu)
    assert no_target.error_after == math.inf
    assert torch.equal(no_target.weights["up_proj"], weights["up_proj"])


def test_bad_inputs_are_refused():
    weights, keep, x, y = _case()
    with pytest.raises(InputError, match="steps is 0"):
        refit_mlp(weights, keep, x, y, F.silu, steps=0)
    with pytest.raises(InputError, match=r"mask of up_proj has shape \(16, 48\): expected \(48, 16\)"):
        refit_mlp(weights, keep | {"up_proj": keep["down_proj"]}, x, y, F.silu)
    with pytest.raises(InputError, match=r"x has shape \(512, 16\) and y \(511, 16\)"):
        refit_mlp(weights, keep, x, y[1:], F.silu)
    with pytest.raises(InputError, match="importance has shape"):
        refit_mlp(weights, keep, x, y, F.silu, importance_T=torch.zeros(TOKENS))
    with pytest.raises(NumericalError, match="y holds NaN"):
        refit_mlp(weights, keep, x, y / 0, F.silu)


def _few_and_others():
    """Few noisy tokens to fit to, many clean ones to judge by."""
    weights, keep, x, y = _case()
    noise = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(2))
    return weights, keep, (x[:64], y[:64] + 0.3 * noise), (x[64:], y[64:])


def test_tokens_held_back_stop_it_before_it_is_over_fitted():
    weights, keep, fitted, others = _few_and_others()
    asked: dict[str, Any] = {"steps": 400, "batch_tokens": 64}
    x, y = fitted
    blind = refit_mlp(weights, keep, x, y, F.silu, **asked)
    found = refit_mlp(weights, keep, x, y, F.silu, held_back=others, **asked)
    assert found.errors.held_back.relative is not None
    assert found.errors.held_back.relative == pytest.approx(_error(found.weights, *others), rel=1e-3)
    assert found.errors.fitted.relative == pytest.approx(found.error_after)
    assert found.errors.held_back.relative <= _error(weights, *others) * (1 + 1e-6)
    assert found.errors.held_back.relative < _error(blind.weights, *others)
    assert blind.error_after < found.error_after
    assert blind.errors.held_back.relative is None


def test_a_start_that_nothing_beats_on_tokens_held_back_is_kept():
    weights, keep, (few, wanted), (x, _) = _few_and_others()
    found = refit_mlp(weights, keep, few, wanted, F.silu, held_back=(x, _mlp(weights, x) + 1e-3), steps=40)
    assert all(torch.equal(found.weights[name], weights[name]) for name in keep)
    assert found.error_after == found.error_before
