import pytest
import torch

from dass.errors import InputError, NumericalError
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.reconstruct import DAMPINGS, DEFAULT_DAMPING, Equations, refit, refit_judged
from dass.method.sparsegpt import sparsegpt


def _inputs(columns: int = 32, tokens: int = 400, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) + 2 * torch.eye(columns)
    return torch.randn(tokens, columns, generator=generator) @ mixing * torch.logspace(-1, 1, columns)


def _weight(rows: int = 24, columns: int = 32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(9))


def _keep(weight: torch.Tensor, x: torch.Tensor, pattern: str = "2:4") -> torch.Tensor:
    return keep_mask(weight.float().abs() * x.norm(dim=0), parse_pattern(pattern), 1)


def _errors(weight: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x.double() @ weight.double().T - y.double()).square().sum(dim=0)


def _least_squares(y: torch.Tensor, keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The exact optimum, row by row."""
    weight = torch.zeros(keep.shape, dtype=torch.float64)
    for row, kept in enumerate(keep):
        weight[row, kept] = torch.linalg.lstsq(x[:, kept].double(), y[:, row].double()).solution
    return weight


def test_two_weights_whose_answer_is_visible():
    # Both inputs are always equal: the weight that stays takes over the other's part.
    weight = torch.tensor([[2.0, 1.0]])
    assert refit(weight, torch.tensor([[True, False]]), torch.ones(2, 2), damping=0.0).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_reaches_the_exact_optimum(pattern):
    x, weight = _inputs().double(), _weight().double()
    keep = _keep(weight, x, pattern)
    found = refit(weight, keep, x.T @ x, damping=0.0, iterations=100)
    assert torch.allclose(found, _least_squares(x @ weight.T, keep, x), atol=1e-6)


def test_the_default_steps_and_damping_come_near_the_optimum():
    x, weight = _inputs(), _weight()
    keep = _keep(weight, x)
    y = x @ weight.T
    best = _errors(_least_squares(y, keep, x), y, x).sum()
    assert _errors(refit(weight, keep, x.T @ x), y, x).sum() < 1.05 * best < 0.6 * _errors(weight * keep, y, x).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("damping", [0.0, 0.01, 5.0])
def test_no_row_is_worse_than_masking_alone(dtype, damping):
    x = _inputs()
    weight = _weight().to(dtype)
    before = weight.clone()
    keep = _keep(weight, x)
    found = refit(weight, keep, x.T @ x, damping)
    y = x @ weight.to(x.dtype).T
    assert found.dtype == dtype
    assert torch.equal(weight, before)
    assert (_errors(found, y, x) <= _errors(weight * keep, y, x) * (1 + 1e-9)).all()
    assert (found[~keep] == 0).all()
    assert not found[~keep].signbit().any()


def test_a_target_of_its_own_makes_up_for_a_pruned_predecessor():
    x_dense, weight = _inputs(), _weight()
    x = x_dense * (
        torch.rand(x_dense.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    )  # what the pruned model sees
    y = x_dense @ weight.T
    keep = _keep(weight, x)
    gram, moment = x.T @ x, y.T @ x
    found = refit(weight, keep, gram, 0.0, moment_OC=moment, iterations=100)
    assert torch.allclose(found.double(), _least_squares(y, keep, x), atol=1e-3)
    assert (_errors(found, y, x) <= _errors(refit(weight, keep, gram, 0.0, iterations=100), y, x)).all()


def test_a_cross_gram_matrix_gives_the_same_moment():
    x_dense, weight = _inputs(), _weight()
    x = x_dense + _inputs(seed=4)
    keep = _keep(weight, x)
    one = refit(weight, keep, x.T @ x, moment_OC=(x_dense @ weight.T).T @ x)
    other = refit(weight, keep, x.T @ x, moment_OC=weight @ (x_dense.T @ x))
    assert torch.allclose(one, other, atol=1e-3)


def test_starts_from_given_weights_and_is_never_worse_than_they_are():
    x, weight = _inputs(), _weight()
    gram, y = x.T @ x, x @ weight.T
    start = sparsegpt(weight, gram, parse_pattern("2:4"))
    one_step = refit(weight, start.keep_OC, gram, start_OC=start.weight_OC, iterations=1)
    assert (_errors(one_step, y, x) <= _errors(start.weight_OC, y, x) * (1 + 1e-9)).all()
    none = refit(weight, start.keep_OC, gram, start_OC=start.weight_OC, iterations=0)
    assert torch.equal(none, start.weight_OC)


def test_a_full_mask_gives_the_dense_weight_and_an_empty_one_zeros():
    x, weight = _inputs(), _weight()
    assert torch.equal(refit(weight, torch.ones_like(weight, dtype=torch.bool), x.T @ x), weight)
    assert torch.equal(refit(weight, torch.zeros_like(weight, dtype=torch.bool), x.T @ x), torch.zeros_like(weight))


def test_singular_and_dead_inputs_make_no_nan():
    weight = _weight()
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    x[:, 4:9] = 0.0
    keep = _keep(weight, x)
    found = refit(weight, keep, x.T @ x, damping=0.0, iterations=200)
    assert found.isfinite().all()
    assert torch.equal(found[:, 4:9], weight[:, 4:9] * keep[:, 4:9])  # no equation: the dense value stays
    assert torch.equal(refit(weight, keep, torch.zeros(32, 32)), weight * keep + 0.0)


def test_an_indefinite_matrix_falls_back_to_the_masked_weights_or_better():
    weight = _weight()
    keep = _keep(weight, _inputs())
    assert refit(weight, keep, -torch.eye(32)).isfinite().all()


def test_bad_inputs_are_refused():
    weight, gram = _weight(), torch.eye(32)
    keep = torch.ones_like(weight, dtype=torch.bool)
    with pytest.raises(InputError, match=r"keep has shape \(24, 31\): expected the weight's, \(24, 32\)"):
        refit(weight, keep[:, 1:], gram)
    with pytest.raises(NumericalError, match="moment holds NaN"):
        refit(weight, keep, gram, moment_OC=weight / 0)
    with pytest.raises(InputError, match="gram has shape"):
        refit(weight, keep, gram[1:])


def _case():
    """A weight, its mask, and tokens to fit to and to judge by, with a target of their own."""
    weight, x = _weight(), _inputs(tokens=360)
    return weight, _keep(weight, x[:60]), x[:60], x[60:]


def _equations(x, y=None):
    moment, power = (None, 0.0) if y is None else (y.T @ x, float(y.square().sum()))
    return Equations(len(x), x.T @ x, moment, power)


def test_equations_know_the_error_on_their_tokens():
    weight, keep, _, other = _case()
    y = other @ weight.T + torch.randn(len(other), len(weight), generator=torch.Generator().manual_seed(3))
    for target, equations in ((other @ weight.T, _equations(other)), (y, _equations(other, y))):
        expected = float(_errors(weight * keep, target, other).sum())
        assert equations.squared_error(weight * keep, weight) == pytest.approx(expected, rel=1e-3)


def test_tokens_held_back_choose_the_damping():
    weight, keep, x, other = _case()
    found, damping = refit_judged(weight, keep, _equations(x), _equations(other))
    errors = {each: _equations(other).squared_error(refit(weight, keep, x.T @ x, each), weight) for each in DAMPINGS}
    assert damping == min(errors, key=lambda each: errors[each])
    assert torch.equal(found, refit(weight, keep, x.T @ x, damping))
    assert refit_judged(weight, keep, _equations(x), _equations(other), 0.03)[1] == 0.03


def test_a_refit_that_is_worse_on_tokens_held_back_is_not_taken():
    weight, keep, x, _ = _case()
    foreign = _inputs(tokens=300, seed=1) * torch.logspace(2, -2, 32)  # channels that were weak are strong here
    found, damping = refit_judged(weight, keep, _equations(x[:8]), _equations(foreign), 0.01)
    assert damping is None
    assert torch.equal(found, weight * keep)


def test_without_tokens_held_back_the_default_is_taken():
    weight, keep, x, _ = _case()
    for held_back in (None, Equations(0, torch.zeros(32, 32))):
        found, damping = refit_judged(weight, keep, _equations(x), held_back)
        assert damping == DEFAULT_DAMPING
        assert torch.equal(found, refit(weight, keep, x.T @ x))
