"""Selection inside competing groups."""

import pytest
import torch

from dass.errors import InputError
from dass.method import mask, selection_on_device
from dass.method.mask import keep_mask, zero_removed_
from dass.method.pattern import parse_pattern
from dass.method.scores import Scores


def test_two_of_four_along_a_row() -> None:
    score = torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 8.0, 7.0, 6.0]])
    assert keep_mask(score, parse_pattern("2:4"), 1).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]


def test_two_of_four_along_a_column() -> None:
    score = torch.tensor([[1.0, 8.0], [4.0, 1.0], [3.0, 2.0], [2.0, 9.0]])
    assert keep_mask(score, parse_pattern("2:4"), 0).int().tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]


def test_one_of_four_keeps_one() -> None:
    score = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert keep_mask(score, parse_pattern("1:4"), 1).int().tolist() == [[0, 1, 0, 0]]


def test_unstructured_competes_along_the_axis_or_across_the_matrix() -> None:
    score = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    half = parse_pattern("unstructured", 0.5)
    assert keep_mask(score, half, 0).int().tolist() == [[0, 0], [1, 1]]
    assert keep_mask(score, half, 1).int().tolist() == [[0, 1], [0, 1]]
    assert keep_mask(score, half, None).int().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "12:32"])
def test_among_ties_the_lower_index_goes_first(axis: int | None, pattern: str) -> None:
    what = parse_pattern(pattern)
    keep = keep_mask(torch.zeros(32, 32), what, axis)
    flat = keep.T if axis == 0 else keep
    groups = flat.reshape(1, -1) if what.is_unstructured and axis is None else flat.reshape(-1, what.group or 32)
    expected = torch.arange(groups.shape[1]) >= what.removed_from(groups.shape[1])
    assert torch.equal(groups, expected.expand_as(groups))


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.9])
def test_a_mask_equals_that_of_a_stable_sort(axis: int | None, sparsity: float) -> None:
    score = torch.randint(0, 9, (100, 60), generator=torch.Generator().manual_seed(0)).float()  # many ties
    pattern = parse_pattern("unstructured", sparsity)
    groups = {0: score.T, 1: score, None: score.reshape(1, -1)}[axis]
    removed = groups.sort(dim=1, stable=True).indices[:, : pattern.removed_from(groups.shape[1])]
    expected = torch.ones_like(groups, dtype=torch.bool).scatter_(1, removed, False)
    expected = {0: expected.T, 1: expected, None: expected.reshape(score.shape)}[axis]
    assert torch.equal(keep_mask(score, pattern, axis), expected)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_scaling_the_scores_changes_nothing(scale: float) -> None:
    score = torch.rand(64, 32, generator=torch.Generator().manual_seed(0))
    for axis in (0, 1):
        assert torch.equal(
            keep_mask(score, parse_pattern("4:8"), axis), keep_mask(score * scale, parse_pattern("4:8"), axis)
        )


def test_the_share_is_exact_where_floating_point_is_not() -> None:
    assert keep_mask(torch.rand(1, 100), parse_pattern("unstructured", 0.29), 1).sum() == 71


def test_a_size_that_m_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="axis 1 of a 4 × 6 matrix is 6, not a multiple of M=4"):
        keep_mask(torch.rand(4, 6), parse_pattern("2:4"), 1)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_mask(torch.tensor([[1.0, float("nan")]]), parse_pattern("unstructured"), 1)


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "5:8", "12:32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_another_device_computes_is_what_the_host_chooses(
    axis: int | None, pattern: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = torch.randint(0, 60, (96, 64), generator=torch.Generator().manual_seed(1)).to(dtype)  # ties, too
    what = parse_pattern(pattern)
    on_host = keep_mask(score, what, axis)
    monkeypatch.setattr(mask, "selection", selection_on_device)
    assert torch.equal(keep_mask(score, what, axis), on_host)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_blocks_that_end_in_the_middle_change_nothing(axis: int, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    score = torch.rand(84, 100, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    whole = keep_mask(score, parse_pattern(pattern), axis)
    monkeypatch.setattr("dass.method.selection._BLOCK_ELEMENTS", 700)
    assert torch.equal(keep_mask(score, parse_pattern(pattern), axis), whole)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_made_in_blocks_choose_as_those_written_out_do(
    axis: int, pattern: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-9, 9, (84, 100), generator=random).to(dtype)  # ties, too
    rows, columns = (torch.rand(size, generator=random) for size in weight.shape)
    columns[3] = 3e38  # what is larger than float32 holds is infinite, and stays without a word
    scores = Scores(weight, ((1, columns), (0, rows * 8)), of_weights=True)
    whole = weight.float().abs() * columns * (rows * 8)[:, None]
    assert torch.equal(scores.whole(), whole)
    assert whole.isinf().any()
    monkeypatch.setattr("dass.method.selection._BLOCK_ELEMENTS", 700)
    assert torch.equal(keep_mask(scores, parse_pattern(pattern), axis), keep_mask(whole, parse_pattern(pattern), axis))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_removed_weights_become_positive_zero_and_the_others_keep_their_bits(dtype: torch.dtype) -> None:
    weight = torch.tensor([[-1.5, float("nan"), -0.0], [float("inf"), 2.0, -3.0]], dtype=dtype)
    keep = torch.tensor([[False, True, True], [False, False, True]])
    before = weight.clone()
    assert zero_removed_(weight, keep) is weight
    assert torch.equal(weight.signbit(), (before.signbit() & keep))
    assert torch.equal(weight[~keep], torch.zeros(3, dtype=dtype))
    assert torch.equal(weight[keep].nan_to_num(7.0), before[keep].nan_to_num(7.0))
    across = torch.rand(5, 4, dtype=dtype).T  # not in one piece
    assert not zero_removed_(across, torch.zeros(4, 5, dtype=torch.bool)).any()
