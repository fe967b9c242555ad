import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

from dass.errors import InputError
from dass.masks.detect import _SPARSE_CORE_SIZES, pattern_of, runs_on_sparse_tensor_cores
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.transposable import transposable_mask


def _pruned(
    pattern: str, axis: int, shape: tuple[int, int] = (64, 64), dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3.0
    return (weight * keep_mask(weight.abs(), parse_pattern(pattern), axis)).to(dtype)


def _names(patterns) -> list[str]:
    return [str(pattern) for pattern in patterns]


def test_a_dense_weight_obeys_nothing():
    found = pattern_of(torch.ones(32, 32))
    assert (found.zero_share, found.along_out, found.along_in) == (0.0, (), ())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "4:8", "5:8", "8:16", "7:16"])
def test_the_pattern_pruned_along_in_features_is_found_there(pattern):
    found = pattern_of(_pruned(pattern, axis=1))
    assert _names(found.along_in)[-1] == pattern
    assert pattern not in _names(found.along_out)
    assert found.zero_share == parse_pattern(pattern).sparsity


def test_the_pattern_pruned_along_out_features_is_found_there():
    found = pattern_of(_pruned("2:4", axis=0))
    assert (_names(found.along_out), found.along_in) == (["2:4"], ())


def test_a_transposable_mask_is_found_along_both_axes():
    score = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) + 1
    found = pattern_of(score * transposable_mask(score))
    assert (_names(found.along_out), _names(found.along_in)) == (["2:4"], ["2:4"])


def test_a_tighter_pattern_with_larger_groups_is_listed_after_the_looser_one():
    group = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 0])
    assert _names(pattern_of(group.repeat(4, 2)).along_in) == ["2:4", "3:8"]


def test_sizes_that_m_does_not_divide_have_no_groups():
    found = pattern_of(torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    assert (found.along_out, found.along_in) == ((), ())


def test_zeros_only():
    found = pattern_of(torch.zeros(4, 4))
    assert (found.zero_share, _names(found.along_in)) == (1.0, ["1:4"])


def test_minus_zero_is_zero_and_nan_is_not():
    assert pattern_of(torch.tensor([[-0.0, 0.0, float("nan"), 1.0]])).zero_share == 0.5


def test_what_is_not_a_matrix_is_refused():
    with pytest.raises(InputError, match=r"shape \(4,\): expected a matrix"):
        pattern_of(torch.ones(4))


def test_two_of_four_in_features_runs_and_out_features_does_not():
    assert runs_on_sparse_tensor_cores(_pruned("2:4", axis=1))
    assert runs_on_sparse_tensor_cores(_pruned("1:4", axis=1))
    assert not runs_on_sparse_tensor_cores(_pruned("2:4", axis=0))
    assert not runs_on_sparse_tensor_cores(_pruned("4:8", axis=1))


def test_dtype_and_sizes_must_have_a_kernel():
    assert runs_on_sparse_tensor_cores(_pruned("2:4", axis=1, dtype=torch.float16))
    assert not runs_on_sparse_tensor_cores(_pruned("2:4", axis=1, dtype=torch.float32))
    assert not runs_on_sparse_tensor_cores(_pruned("2:4", axis=1, shape=(64, 24)))
    assert not runs_on_sparse_tensor_cores(_pruned("2:4", axis=1, shape=(8, 64)))


def test_the_sizes_are_those_that_torch_checks():
    constraints = SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS
    assert {dtype: (c.sparse_min_rows, c.sparse_min_cols) for dtype, c in constraints.items()} == _SPARSE_CORE_SIZES
