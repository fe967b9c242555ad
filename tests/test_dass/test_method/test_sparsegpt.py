import pytest
import torch

from dass.errors import InputError, NumericalError
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.sparsegpt import sparsegpt


def _data(rows: int = 24, columns: int = 32, tokens: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Gram matrix of inputs that are correlated and differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) + 2 * torch.eye(columns)
    x = torch.randn(tokens, columns, generator=generator) @ mixing * torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=generator), x.T @ x


def _error(weight: torch.Tensor, dense: torch.Tensor, gram: torch.Tensor) -> float:
    difference = (weight - dense).double()
    return float(((difference @ gram.double()) * difference).sum())


def _plain(weight: torch.Tensor, gram: torch.Tensor, removed: int, block: int) -> torch.Tensor:
    """The paper's algorithm 1 in float64, one column after another, from an explicit inverse."""
    weight, gram = weight.double().clone(), gram.double()
    columns = weight.shape[1]
    inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for j in range(columns):
        if j % block == 0:
            cost = weight[:, j : j + block] ** 2 / factor.diagonal()[j : j + block] ** 2
            keep = cost > cost.flatten().sort().values[removed - 1]
        error = weight[:, j] * ~keep[:, j % block] / factor[j, j]
        weight[:, j:] -= error[:, None] * factor[j, j:]
    return weight


def test_equals_the_papers_algorithm_column_by_column():
    weight, gram = _data()
    expected = _plain(weight, gram, removed=24 * 8 // 2, block=8)
    result = sparsegpt(weight, gram, parse_pattern("unstructured"), block_size=8)
    assert torch.allclose(result.weight_OC.double(), expected, atol=2e-4)
    assert torch.equal(result.keep_OC, expected.abs() > 1e-9)
    assert result.damping == 0.01


def test_uncorrelated_inputs_leave_the_weights_alone_and_choose_as_wanda():
    weight, _ = _data()
    scale = torch.logspace(-1, 1, 32)
    result = sparsegpt(weight, torch.diag(scale**2), parse_pattern("2:4"), damping=0.0)
    assert torch.equal(result.keep_OC, keep_mask(weight.abs() * scale, parse_pattern("2:4"), 1))
    assert torch.equal(result.weight_OC, weight * result.keep_OC + 0.0)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "4:8", "5:16"])
@pytest.mark.parametrize("block_size", [3, 6, 16, 128])
def test_n_m_keeps_exactly_n_of_every_m_in_features(pattern, block_size):
    weight, gram = _data()
    kept, group = map(int, pattern.split(":"))
    keep = sparsegpt(weight, gram, parse_pattern(pattern), block_size=block_size).keep_OC
    assert (keep.view(24, -1, group).sum(dim=2) == kept).all()


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.93])
@pytest.mark.parametrize("block_size", [1, 7, 128])
def test_unstructured_removes_exactly_the_asked_count(sparsity, block_size):
    weight, gram = _data(rows=23)
    asked = parse_pattern("unstructured", sparsity)
    keep = sparsegpt(weight, gram, asked, block_size=block_size).keep_OC
    assert int((~keep).sum()) == asked.removed_from(23 * 32)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_update_beats_wanda_and_its_own_mask_without_update(pattern):
    weight, gram = _data()
    asked = parse_pattern(pattern)
    result = sparsegpt(weight, gram, asked)
    wanda = keep_mask(weight.abs() * gram.diagonal().sqrt(), asked, 1)
    error = _error(result.weight_OC, weight, gram)
    assert error < _error(weight * wanda, weight, gram)
    assert error < _error(weight * result.keep_OC, weight, gram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_removed_weights_are_plus_zero(dtype):
    weight, gram = _data()
    weight = weight.to(dtype)
    before = weight.clone()
    result = sparsegpt(weight, gram, parse_pattern("2:4"))
    assert result.weight_OC.dtype == dtype
    assert torch.equal(weight, before)
    assert (result.weight_OC[~result.keep_OC] == 0).all()
    assert not result.weight_OC[~result.keep_OC].signbit().any()


def test_scaling_the_gram_matrix_changes_nothing():
    weight, gram = _data()
    one, other = (sparsegpt(weight, g, parse_pattern("4:8")) for g in (gram, gram * 4096))
    assert torch.equal(one.keep_OC, other.keep_OC)
    assert torch.equal(one.weight_OC, other.weight_OC)


def test_float32_and_float64_agree():
    weight, gram = _data()
    one, other = (sparsegpt(weight, g, parse_pattern("2:4")) for g in (gram, gram.double()))
    assert torch.equal(one.keep_OC, other.keep_OC)
    assert torch.allclose(one.weight_OC, other.weight_OC, atol=1e-3)


def test_dead_columns_go_first_and_those_that_stay_keep_their_value():
    weight, gram = _data()
    dead = torch.tensor([0, 5, 6, 7])
    gram[dead] = 0.0
    gram[:, dead] = 0.0
    result = sparsegpt(weight, gram, parse_pattern("2:4"))
    assert not result.keep_OC[:, 0].any()
    assert (result.keep_OC[:, 5:8].sum(dim=1) == 1).all()
    assert result.keep_OC[:, 4].all()
    stayed = result.keep_OC[:, dead]
    assert torch.equal(result.weight_OC[:, dead][stayed], weight[:, dead][stayed])


def test_a_singular_gram_matrix_gets_more_damping():
    weight, _ = _data()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))  # 5 tokens, 32 channels: rank 5
    for asked, pattern in ((0.0, "2:4"), (1e-12, "unstructured")):
        result = sparsegpt(weight, x.T @ x, parse_pattern(pattern), damping=asked)
        assert asked < result.damping < 0.1
        assert result.weight_OC.isfinite().all()
        assert result.weight_OC.abs().max() < 100


def test_inputs_that_are_all_zero_prune_by_position_without_nan():
    weight, _ = _data()
    result = sparsegpt(weight, torch.zeros(32, 32), parse_pattern("2:4"))
    assert torch.equal(result.weight_OC, weight * result.keep_OC + 0.0)


def test_what_is_no_gram_matrix_is_refused():
    weight, gram = _data()
    with pytest.raises(NumericalError, match="indefinite"):
        sparsegpt(weight, gram - 1e9 * torch.eye(32), parse_pattern("2:4"))
    with pytest.raises(NumericalError, match="gram holds NaN"):
        sparsegpt(weight, gram * float("nan"), parse_pattern("2:4"))
    with pytest.raises(NumericalError, match="weight holds NaN"):
        sparsegpt(weight / 0, gram, parse_pattern("2:4"))
    with pytest.raises(InputError, match=r"gram has shape \(31, 31\) and the weight \(24, 32\)"):
        sparsegpt(weight, gram[1:, 1:], parse_pattern("2:4"))
    with pytest.raises(InputError, match="bfloat16: expected float32 or float64"):
        sparsegpt(weight, gram.bfloat16(), parse_pattern("2:4"))
    with pytest.raises(InputError, match="damping is -1"):
        sparsegpt(weight, gram, parse_pattern("2:4"), damping=-1)
    with pytest.raises(InputError, match="block_size is 0"):
        sparsegpt(weight, gram, parse_pattern("2:4"), block_size=0)
    with pytest.raises(InputError, match="in_features is 30, not a multiple of M=4"):
        sparsegpt(weight[:, :30], gram[:30, :30], parse_pattern("2:4"))
