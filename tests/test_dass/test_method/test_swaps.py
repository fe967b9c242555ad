"""Swaps lower the error, leave every count as it is, and end where no single swap helps."""

from collections.abc import Iterator
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from dass.errors import InputError, NumericalError
from dass.method.mask import keep_mask
from dass.method.pattern import Pattern, parse_pattern
from dass.method.sparsegpt import sparsegpt
from dass.method.swaps import Refined, refine
from dass.method.transposable import transposable_mask

CASES = [
    ("unstructured", 0, False),
    ("unstructured", 1, False),
    ("unstructured", None, False),
    ("2:4", 0, False),
    ("2:4", 1, False),
    ("1:4", 1, False),
    ("5:8", 0, False),
    ("3:24", 1, False),
    ("2:4", 0, True),
]
NAMES = [f"{pattern} axis {axis}{' transposable' if blocks else ''}" for pattern, axis, blocks in CASES]
ENOUGH = 10_000

Swap = list[tuple[int, int, bool]]  # row, column, kept from now on


def data(rows: int = 8, columns: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A weight and the Gram matrix of inputs that are correlated and differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) + torch.eye(columns)
    x = (torch.randn(200, columns, generator=generator) @ mixing * torch.logspace(-1, 1, columns)).to(dtype)
    return torch.randn(rows, columns, generator=generator).to(dtype), x.T @ x


def error(weight: Tensor, values: Tensor, gram: Tensor) -> float:
    difference = weight.double() - values.double()
    return float(((difference @ gram.double()) * difference).sum())


def mask_of(weight: Tensor, pattern: Pattern, axis: int | None, blocks: bool) -> Tensor:
    return transposable_mask(weight.abs()) if blocks else keep_mask(weight.abs(), pattern, axis)


def groups(rows: int, columns: int, pattern: Pattern, axis: int | None) -> list[list[tuple[int, int]]]:
    """The competing groups, as places."""
    if axis is None:
        return [list(product(range(rows), range(columns)))]
    size = pattern.group or (rows, columns)[axis]
    if axis == 0:
        return [[(first + k, j) for k in range(size)] for first in range(0, rows, size) for j in range(columns)]
    return [[(i, first + k) for k in range(size)] for i in range(rows) for first in range(0, columns, size)]


def all_swaps(keep: Tensor, pattern: Pattern, axis: int | None, blocks: bool) -> Iterator[Swap]:
    """Every single swap that leaves the counts as they are."""
    rows, columns = keep.shape
    if not blocks:
        for group in groups(rows, columns, pattern, axis):
            kept = [place for place in group if keep[place]]
            removed = [place for place in group if not keep[place]]
            yield from ([(*i, True), (*j, False)] for i in removed for j in kept)
        return
    for top, left in product(range(0, rows, 4), range(0, columns, 4)):
        for (p, q), (i, j) in product(combinations(range(4), 2), combinations(range(4), 2)):
            a, b, c, d = (top + p, left + i), (top + p, left + j), (top + q, left + i), (top + q, left + j)
            if keep[a] == keep[d] != keep[b] == keep[c]:
                yield [(*place, not bool(keep[place])) for place in (a, b, c, d)]


def made(pattern: str, axis: int | None, blocks: bool, **given: int) -> tuple[Tensor, Tensor, Tensor, Refined]:
    weight, gram = data(8, 12 if axis is None else 24)
    keep = mask_of(weight, parse_pattern(pattern), axis, blocks)
    most = given.get("max_swaps", ENOUGH)
    return (
        weight,
        gram,
        keep,
        refine(weight, keep, gram, parse_pattern(pattern), axis, transposable=blocks, max_swaps=most),
    )


@pytest.mark.parametrize(("pattern", "axis", "blocks"), CASES, ids=NAMES)
def test_no_single_swap_helps_afterwards(pattern: str, axis: int | None, blocks: bool) -> None:
    weight, gram, keep, refined = made(pattern, axis, blocks)
    before, after = error(weight, weight * keep, gram), error(weight, weight * refined.keep_OC, gram)
    assert after < 0.95 * before
    assert refined.refinement.error_before == pytest.approx(before)
    assert refined.refinement.error_after == pytest.approx(after)
    assert refined.refinement.swaps == int((refined.keep_OC & ~keep).sum()) > 0
    tried = 0
    for swap in all_swaps(refined.keep_OC, parse_pattern(pattern), axis, blocks):
        other = refined.keep_OC.clone()
        for row, column, kept in swap:
            other[row, column] = kept
        assert error(weight, weight * other, gram) > after * (1 - 1e-9)
        tried += 1
    assert tried > 20


@pytest.mark.parametrize(("pattern", "axis", "blocks"), CASES, ids=NAMES)
def test_counts_stay_in_every_group(pattern: str, axis: int | None, blocks: bool) -> None:
    _, _, keep, refined = made(pattern, axis, blocks)
    rows, columns = keep.shape
    for group in groups(rows, columns, parse_pattern(pattern), axis):
        assert sum(bool(refined.keep_OC[place]) for place in group) == sum(bool(keep[place]) for place in group)
    if blocks:
        assert (refined.keep_OC.view(-1, 4, keep.shape[1]).sum(dim=1) == 2).all()
        assert (refined.keep_OC.view(len(keep), -1, 4).sum(dim=2) == 2).all()


@pytest.mark.parametrize(("pattern", "axis", "blocks"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engines_precision_never_raises_the_error_and_repeats_itself(
    pattern: str, axis: int | None, blocks: bool, dtype: torch.dtype
) -> None:
    weight, gram = data(rows=8, columns=48, seed=1, dtype=torch.float32)
    weight = weight.to(dtype)
    rule = parse_pattern(pattern)
    keep = mask_of(weight, rule, axis, blocks)
    one, two = (refine(weight, keep, gram, rule, axis, transposable=blocks, max_swaps=ENOUGH) for _ in range(2))
    assert torch.equal(one.keep_OC, two.keep_OC)
    assert one.refinement == two.refinement
    assert error(weight, weight * one.keep_OC, gram) < error(weight, weight * keep, gram)


@pytest.mark.parametrize(("pattern", "axis", "blocks"), CASES, ids=NAMES)
def test_a_row_takes_part_in_no_more_swaps_than_asked(pattern: str, axis: int | None, blocks: bool) -> None:
    weight, gram, keep, few = made(pattern, axis, blocks, max_swaps=1)
    _, _, _, all_ = made(pattern, axis, blocks)
    moved = (few.keep_OC != keep).sum(dim=1)
    assert 0 < int(moved.max()) <= 2  # one comes back, one goes
    assert all_.refinement.error_after < few.refinement.error_after < error(weight, weight * keep, gram)


def test_an_answer_that_is_visible() -> None:
    # The two smallest weights see the same input, so that losing both costs (1.8 + 1)² = 7.84: losing the second
    # largest and the smallest costs 2² + 1² = 5.
    weight = torch.tensor([[4.0, 2.0, 1.8, 1.0]])
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    keep = torch.tensor([[True, True, False, False]])
    refined = refine(weight, keep, x.T @ x, parse_pattern("2:4"), 1, max_swaps=ENOUGH)
    assert refined.keep_OC.tolist() == [[True, False, True, False]]
    assert refined.refinement.swaps == 1
    assert refined.refinement.error_before == pytest.approx(7.84)
    assert refined.refinement.error_after == pytest.approx(5.0)


def test_a_mask_that_is_best_stays() -> None:
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    keep = torch.tensor([[True, True, False, False]])
    refined = refine(weight, keep, torch.eye(4), parse_pattern("2:4"), 1, max_swaps=ENOUGH)
    assert torch.equal(refined.keep_OC, keep)
    assert refined.refinement.swaps == 0
    assert refined.refinement.error_before == refined.refinement.error_after == 5.0


@pytest.mark.parametrize("columns", [24, 64])
@pytest.mark.parametrize(("pattern", "axis"), [("2:4", 1), ("unstructured", None)])
def test_updated_weights_end_closer_with_counts_and_zeros_exact(pattern: str, axis: int | None, columns: int) -> None:
    weight, gram = data(16, columns, dtype=torch.float32)
    rule = parse_pattern(pattern)
    first = sparsegpt(weight.bfloat16(), gram, rule)
    refined = refine(weight.bfloat16(), first.keep_OC, gram, rule, axis, max_swaps=ENOUGH, values_OC=first.weight_OC)
    assert refined.values_OC is not None
    assert refined.values_OC.dtype == torch.bfloat16
    assert (refined.values_OC[~refined.keep_OC] == 0).all()
    assert not refined.values_OC[~refined.keep_OC].signbit().any()
    assert refined.keep_OC.sum() == first.keep_OC.sum()
    assert error(weight.bfloat16(), refined.values_OC, gram) < 0.98 * error(weight.bfloat16(), first.weight_OC, gram)
    dense = refined.values_OC == weight.bfloat16()
    assert (dense | (refined.values_OC == first.weight_OC) | ~refined.keep_OC).all()
    assert dense[refined.keep_OC & ~first.keep_OC].all()


def test_rows_refined_apart_are_those_refined_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = data(16)
    keep = keep_mask(weight.abs(), parse_pattern("2:4"), 0)
    together = refine(weight, keep, gram, parse_pattern("2:4"), 0, max_swaps=ENOUGH)
    monkeypatch.setattr("dass.method.swaps._CHUNK_ELEMENTS", 1)
    apart = refine(weight, keep, gram, parse_pattern("2:4"), 0, max_swaps=ENOUGH)
    assert torch.equal(apart.keep_OC, together.keep_OC)
    assert apart.refinement.swaps == together.refinement.swaps


def test_channels_without_input_cost_nothing_and_break_nothing() -> None:
    weight, gram = data(dtype=torch.float32)
    gram[:12], gram[:, :12] = 0.0, 0.0
    keep = keep_mask(weight.abs(), parse_pattern("unstructured"), 1)
    refined = refine(weight, keep, gram, parse_pattern("unstructured"), 1, max_swaps=ENOUGH)
    assert refined.keep_OC[:, 12:].all()  # the half that is removed is the half that sees nothing
    assert refined.refinement.error_after == pytest.approx(0.0, abs=1e-3)


def test_what_does_not_belong_together_is_refused() -> None:
    weight, gram = data()
    keep = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match=r"keep has shape \(4, 4\): expected the weight's, \(8, 24\)"):
        refine(weight, keep, gram, parse_pattern("2:4"), 1, max_swaps=1)
    with pytest.raises(InputError, match="gram has shape"):
        refine(weight, weight > 0, gram[:3], parse_pattern("2:4"), 1, max_swaps=1)
    with pytest.raises(NumericalError, match="gram holds NaN"):
        refine(weight, weight > 0, gram * torch.nan, parse_pattern("2:4"), 1, max_swaps=1)
