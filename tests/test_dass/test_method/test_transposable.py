from itertools import combinations

import pytest
import torch

from dass.errors import InputError
from dass.method.transposable import transposable_mask, transposable_patterns


def _best_by_trying_all(score: torch.Tensor) -> float:
    """Largest sum over 4×4 0/1 blocks of 8 ones with two in every row and column, by enumerating all 8-subsets."""
    best = -float("inf")
    for chosen in combinations(range(16), 8):
        if all(sum(k // 4 == i for k in chosen) == 2 and sum(k % 4 == i for k in chosen) == 2 for i in range(4)):
            best = max(best, sum(float(score[k // 4, k % 4]) for k in chosen))
    return best


def test_there_are_90_patterns_all_different():
    patterns = transposable_patterns()
    assert patterns.shape == (90, 4, 4)
    assert len({tuple(p.flatten().tolist()) for p in patterns}) == 90
    assert (patterns.sum(dim=1) == 2).all()
    assert (patterns.sum(dim=2) == 2).all()


def test_a_block_whose_answer_is_visible():
    score = torch.tensor([[9.0, 9, 1, 1], [9, 9, 1, 1], [1, 1, 9, 9], [1, 1, 9, 9]])
    assert torch.equal(transposable_mask(score), score == 9)


def test_every_block_equals_brute_force():
    score = torch.rand(8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = transposable_mask(score)
    for row in range(0, 8, 4):
        for column in range(0, 12, 4):
            block = score[row : row + 4, column : column + 4]
            kept = float(block[keep[row : row + 4, column : column + 4]].sum())
            assert kept == pytest.approx(_best_by_trying_all(block), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_of_four_along_both_axes(dtype):
    keep = transposable_mask(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).abs().to(dtype))
    assert keep.dtype == torch.bool
    assert keep.shape == (64, 32)
    assert (keep.view(16, 4, 32).sum(dim=1) == 2).all()
    assert (keep.view(64, 8, 4).sum(dim=2) == 2).all()


def test_the_mask_of_the_transpose_is_the_transpose_of_the_mask():
    score = torch.rand(32, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(transposable_mask(score.T), transposable_mask(score).T)


def test_scaling_by_a_power_of_two_changes_nothing():
    score = torch.rand(16, 16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(transposable_mask(score), transposable_mask(score * 1024))


def test_ties_take_the_first_pattern():
    assert torch.equal(transposable_mask(torch.zeros(8, 4)), transposable_patterns()[0].repeat(2, 1))


def test_chunks_make_no_difference(monkeypatch):
    score = torch.rand(32, 32, generator=torch.Generator().manual_seed(4))
    whole = transposable_mask(score)
    monkeypatch.setattr("dass.method.transposable._CHUNK_BLOCKS", 7)
    assert torch.equal(transposable_mask(score), whole)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (16,)])
def test_sizes_that_4_does_not_divide_are_refused(shape):
    with pytest.raises(InputError, match=r"multiples of 4, the scores have shape"):
        transposable_mask(torch.ones(shape))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        transposable_mask(torch.full((4, 4), float("nan")))
