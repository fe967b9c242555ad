"""Refining a mask: 1-for-1 swaps that lower what it costs a matrix's outputs (arXiv 2512.10922, SparseSwaps).

Axes: O out_features, C in_features (the contraction axis), R rows looked at together, M members of a group.
The error of row w with new values v is (w − v) G (w − v)ᵀ, G = XᵀX of the matrix's inputs. A swap puts one removed
weight i of a competing group back, with its dense value, and removes a kept one j of it. With r = (w − v) G it changes
the error inside one row by

    (w_i² G_ii − 2 w_i r_i) + (v_j² G_jj + 2 v_j r_j) − 2 w_i v_j G_ij

and between two rows by the first two terms alone. Every pass makes the best swaps that touch no row twice, so that
their changes add up exactly, and then brings r up to date, two rows of G a swap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method.pattern import Pattern
from dass.method.sparsegpt import check_gram

_CHUNK_ELEMENTS = 1 << 20  # of the rows refined together where rows are independent: their tensors stay in the cache
_TABLE_ELEMENTS = 1 << 23  # bounds a table of all pairs to 32 MB in float32
_SHORT_LIST = 8  # removed weights of a long group that every kept one is tried against before all are


@dataclass(frozen=True)
class Refinement:
    """What swaps did to one matrix.

    Attributes:
        swaps: weights that came back; as many went.
        error_before: Σ over rows of (w − v) G (w − v)ᵀ, that is ‖XWᵀ − XVᵀ‖² over the calibration tokens.
        error_after: the same behind the swaps.
    """

    swaps: int
    error_before: float
    error_after: float

    def __add__(self, other: "Refinement") -> "Refinement":
        """Of two matrices together."""
        return Refinement(
            self.swaps + other.swaps, self.error_before + other.error_before, self.error_after + other.error_after
        )


@dataclass(frozen=True)
class Refined:
    """A refined mask.

    Attributes:
        keep_OC: bool, True = kept, as many in every competing group as before.
        values_OC: the new weights where values were given, in their dtype, removed ones +0.0; else None.
        refinement: what it took and what it gave.
    """

    keep_OC: Tensor
    values_OC: Tensor | None
    refinement: Refinement


def refine(
    weight_OC: Tensor,
    keep_OC: Tensor,
    gram_CC: Tensor,
    pattern: Pattern,
    axis: int | None,
    *,
    transposable: bool = False,
    max_swaps: int,
    values_OC: Tensor | None = None,
) -> Refined:
    """Swap weights inside the competing groups of a mask until no swap lowers the error, or a row had its number.

    Args:
        weight_OC: dense weights (O, C), any float dtype.
        keep_OC: bool, True = kept, as `pattern` and `axis` allow.
        gram_CC: XᵀX of the matrix's inputs, (C, C), float32 or float64. The arithmetic is done in this dtype; gains
            that its rounding could have made are left alone.
        pattern: unstructured, or N:M.
        axis: along which weights compete, as `competition_axis` says: 0 within a column, 1 within a row, None across
            the whole matrix. A group's error is that of all its rows.
        transposable: the mask is 2:4 along both axes: swaps exchange the kept and the removed pair of a 2×2 of a 4×4
            block, crosswise, which leaves both counts as they are.
        max_swaps: a row takes part in no more.
        values_OC: weights that were updated already, +0.0 where removed (SparseGPT's). A weight comes back with its
            dense value all the same: the one that suits its row best, r_i / G_ii, was found to be forty times as large
            where a channel sees little, which no other text would forgive.

    Returns:
        The mask. No group's error is larger than before, rounding to the weight's dtype included.

    Raises:
        InputError: shapes or dtype cannot be used.
        NumericalError: weights or Gram matrix hold NaN or infinity.
    """
    check_gram(weight_OC, gram_CC, 0.0)
    for name, tensor in (("keep", keep_OC), ("values", values_OC)):
        if tensor is not None and tensor.shape != weight_OC.shape:
            raise InputError(
                f"{name} has shape {tuple(tensor.shape)}: expected the weight's, {tuple(weight_OC.shape)}."
            )
    rows, columns = weight_OC.shape
    together = _rows_together(rows, pattern, axis, transposable)
    search = _search(pattern, axis, transposable, columns, together)
    size = max(1, _CHUNK_ELEMENTS // (columns * together)) * together
    parts = []
    for start in range(0, rows, size):
        part = slice(start, start + size)
        state = _State(
            weight_OC[part], keep_OC[part], gram_CC, max_swaps, None if values_OC is None else values_OC[part]
        )
        while state.swap(*search(state)):
            pass
        parts.append(state.result(together))
    total = Refinement(0, 0.0, 0.0)
    for each in parts:
        total += each.refinement
    values = [each.values_OC for each in parts if each.values_OC is not None]
    return Refined(torch.cat([each.keep_OC for each in parts]), torch.cat(values) if values else None, total)


def _rows_together(rows: int, pattern: Pattern, axis: int | None, transposable: bool) -> int:
    """How many consecutive rows share competing groups."""
    if transposable:
        return 4
    if axis == 0:
        return rows if pattern.group is None else pattern.group
    return rows if axis is None and pattern.group is None else 1


_Found = tuple[Tensor, Tensor, Tensor, Tensor]  # row and column of what comes back, row and column of what goes
_Search = Callable[["_State"], _Found]


class _State:
    """Rows on their way: their mask, values and r = (w − v) G."""

    def __init__(
        self, weight_RC: Tensor, keep_RC: Tensor, gram_CC: Tensor, max_swaps: int, values_RC: Tensor | None
    ) -> None:
        self._given = weight_RC, keep_RC, values_RC
        self.gram_CC, self.diagonal_C = gram_CC, gram_CC.diagonal().clone()
        self.dense_RC = weight_RC.to(gram_CC.dtype)
        self.keep_RC = keep_RC.clone()
        self.now_RC = (weight_RC if values_RC is None else values_RC).to(gram_CC.dtype).masked_fill(~keep_RC, 0.0)
        self.slope_RC = (self.dense_RC - self.now_RC) @ gram_CC
        self.error_before_R = self._error()
        # What rounding of the error's sum could have made is no gain.
        self.least_R = self.error_before_R.clamp_min(0.0) * (8 * torch.finfo(gram_CC.dtype).eps)
        self.left_R = torch.full((len(weight_RC),), max_swaps, device=weight_RC.device)
        self.settled_R = torch.zeros_like(self.left_R, dtype=torch.bool)

    def stakes(self, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of some rows (R,): the value each weight has or would come back with, what coming back changes (infinite for
        kept ones), what going changes (infinite for removed ones). All (R, C)."""
        keep_RC, slope_RC = self.keep_RC[rows], self.slope_RC[rows]
        value_RC = torch.where(keep_RC, self.now_RC[rows], self.dense_RC[rows])
        square_RC = value_RC.square().mul_(self.diagonal_C)
        cross_RC = (2.0 * value_RC).mul_(slope_RC)
        return (
            value_RC,
            (square_RC - cross_RC).masked_fill_(keep_RC, torch.inf),
            square_RC.add_(cross_RC).masked_fill_(~keep_RC, torch.inf),
        )

    def swap(self, back_row: Tensor, back_column: Tensor, gone_row: Tensor, gone_column: Tensor) -> int:
        """Make these swaps, which touch each row once; returns how many."""
        if not len(back_row):
            return 0
        value, lost = self.dense_RC[back_row, back_column], self.now_RC[gone_row, gone_column]
        self.slope_RC[back_row] -= value[:, None] * self.gram_CC[back_column]
        self.slope_RC[gone_row] += lost[:, None] * self.gram_CC[gone_column]
        self.now_RC[back_row, back_column] = value
        self.now_RC[gone_row, gone_column] = 0.0
        self.keep_RC[back_row, back_column] = True
        self.keep_RC[gone_row, gone_column] = False
        touched_R = torch.zeros_like(self.settled_R)
        touched_R[back_row] = touched_R[gone_row] = True
        self.left_R -= touched_R.long()
        self.settled_R &= ~touched_R
        return len(back_row)

    def result(self, together: int) -> Refined:
        """What became of the rows; those whose groups would have lost by it, if only by rounding, are as they were."""
        weight_RC, keep_RC, values_RC = self._given
        stored_RC = self.now_RC.to(weight_RC.dtype) + 0.0
        self.now_RC = stored_RC.to(self.now_RC.dtype)
        self.slope_RC = (self.dense_RC - self.now_RC) @ self.gram_CC
        before_R, after_R = self.error_before_R, self._error()
        worse = after_R.view(-1, together).sum(dim=1) > before_R.view(-1, together).sum(dim=1)
        worse_R = worse.repeat_interleave(together)
        keep = torch.where(worse_R[:, None], keep_RC, self.keep_RC)
        values = None if values_RC is None else torch.where(worse_R[:, None], values_RC, stored_RC)
        return Refined(
            keep,
            values,
            Refinement(
                int((keep & ~keep_RC).count_nonzero()),
                float(before_R.sum()),
                float(torch.where(worse_R, before_R, after_R).sum()),
            ),
        )

    def _error(self) -> Tensor:
        return ((self.dense_RC - self.now_RC) * self.slope_RC).sum(dim=1, dtype=torch.float64)


def _search(pattern: Pattern, axis: int | None, transposable: bool, columns: int, together: int) -> _Search:
    """How the swaps of a pass are found."""
    if transposable:
        return _crosswise
    if axis == 0:
        return lambda state: _down_columns(state, together)
    if axis is None and pattern.group is None:
        return _anywhere
    return lambda state: _within(state, pattern.group or columns)


def _in_rows(state: _State, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row that is not settled, the best swap inside a group of `group` consecutive columns: row, column that
    comes back, column that goes, change. Rows without one are settled from now on."""
    row = ((state.left_R > 0) & ~state.settled_R).nonzero()[:, 0]
    value, back, gone = state.stakes(row)
    least = -state.least_R[row]
    columns, all_ = value.shape[1], torch.arange(len(row), device=row.device)
    change, came, went = torch.full_like(back[:, 0], torch.inf), torch.empty_like(row), torch.empty_like(row)
    if group == columns > 2 * _SHORT_LIST:
        for part in all_.split(max(1, _TABLE_ELEMENTS // (columns * _SHORT_LIST))):
            change[part], came[part], went[part] = _best_of_few(state.gram_CC, value[part], back[part], gone[part])
    for part in all_[change >= least].split(max(1, _TABLE_ELEMENTS // (columns * group))):
        table = _pairs(state.gram_CC, value[part], back[part], gone[part], group)
        change[part], place = table.flatten(1).min(dim=1)
        first = place // (group * group) * group
        came[part], went[part] = first + place // group % group, first + place % group
    helps = change < least
    state.settled_R[row[~helps]] = True
    return row[helps], came[helps], went[helps], change[helps]


def _pairs(gram_CC: Tensor, value_RC: Tensor, back_RC: Tensor, gone_RC: Tensor, group: int) -> Tensor:
    """What each swap inside a group changes: (R, groups, M comes back, M goes), infinite where there is none."""
    groups = gram_CC.shape[0] // group
    value, back, gone = (each.view(len(each), groups, group) for each in (value_RC, back_RC, gone_RC))
    index = torch.arange(groups, device=gram_CC.device)
    gram = gram_CC.view(groups, group, groups, group)[index, :, index]  # the blocks along the diagonal
    return torch.addcmul(
        back[..., :, None] + gone[..., None, :], value[..., :, None] * gram, value[..., None, :], value=-2.0
    )


def _best_of_few(gram_CC: Tensor, value_RC: Tensor, back_RC: Tensor, gone_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best swap of a whole row among those that bring one of a few promising weights back: change, columns."""
    back, came = back_RC.topk(_SHORT_LIST, dim=1, largest=False)
    table = gram_CC[came].mul_(value_RC.gather(1, came)[..., None]).mul_(value_RC[:, None, :])
    table.mul_(-2.0).add_(back[..., None]).add_(gone_RC[:, None, :])
    change, place = table.flatten(1).min(dim=1)
    columns = gram_CC.shape[0]
    return change, came.gather(1, (place // columns)[:, None])[:, 0], place % columns


def _within(state: _State, group: int) -> _Found:
    """Swaps inside rows."""
    row, came, went, _ = _in_rows(state, group)
    return row, came, row, went


def _down_columns(state: _State, group: int) -> _Found:
    """Swaps between rows of `group` consecutive ones, inside a column."""
    _, back, gone = _of_active(state)
    columns = back.shape[1]
    came_change, came = back.view(-1, group, columns).min(dim=1)
    went_change, went = gone.view(-1, group, columns).min(dim=1)
    change = came_change + went_change
    block, column = (change < 0).nonzero(as_tuple=True)
    first = block * group
    back_row, gone_row = first + came[block, column], first + went[block, column]
    chosen = _disjoint(state, back_row, gone_row, change[block, column])
    return back_row[chosen], column[chosen], gone_row[chosen], column[chosen]


def _anywhere(state: _State) -> _Found:
    """Swaps inside rows, and between any two."""
    row, came, went, change = _in_rows(state, state.keep_RC.shape[1])
    _, back, gone = _of_active(state)
    came_change, came_of = back.min(dim=1)
    went_change, went_of = gone.min(dim=1)
    takers, givers = came_change.argsort(stable=True), went_change.argsort(stable=True)
    # The best pair of two different rows is among the first of these.
    taker = torch.cat([takers, takers[:-1], takers[1:]])
    giver = torch.cat([givers, givers[1:], givers[:-1]])
    taker, giver = taker[taker != giver], giver[taker != giver]
    back_row, gone_row = torch.cat([row, taker]), torch.cat([row, giver])
    chosen = _disjoint(state, back_row, gone_row, torch.cat([change, came_change[taker] + went_change[giver]]))
    came, went = torch.cat([came, came_of[taker]]), torch.cat([went, went_of[giver]])
    return back_row[chosen], came[chosen], gone_row[chosen], went[chosen]


def _crosswise(state: _State) -> _Found:
    """Exchanges of the kept and the removed pair of a 2×2 inside a 4×4 block: two rows, two columns of it."""
    table = _pairs(state.gram_CC, *_of_active(state), 4)
    table = table.view(-1, 4, *table.shape[1:])
    first, second = (torch.tensor(each, device=table.device) for each in zip(*combinations(range(4), 2), strict=True))
    # What comes back in one row goes in the other.
    change, place = (table[:, first] + table[:, second].transpose(-1, -2)).flatten(2).min(dim=2)
    block, pair = (change < 0).nonzero(as_tuple=True)
    place = place[block, pair]
    upper, lower = 4 * block + first[pair], 4 * block + second[pair]
    left = place // 16 * 4
    one, other = left + place // 4 % 4, left + place % 4
    chosen = _disjoint(state, upper, lower, change[block, pair])
    upper, lower, one, other = upper[chosen], lower[chosen], one[chosen], other[chosen]
    rows = torch.cat([upper, lower])
    return rows, torch.cat([one, other]), rows, torch.cat([other, one])


def _of_active(state: _State) -> tuple[Tensor, Tensor, Tensor]:
    """The stakes of all rows, infinite in those that had their number of swaps."""
    value, back, gone = state.stakes(slice(None))
    done_R1 = (state.left_R <= 0)[:, None]
    return value, back.masked_fill_(done_R1, torch.inf), gone.masked_fill_(done_R1, torch.inf)


def _disjoint(state: _State, one_row: Tensor, other_row: Tensor, change: Tensor) -> Tensor:
    """Which swaps to make at once: those that gain most among all that touch one of their rows."""
    gains = (change < -torch.maximum(state.least_R[one_row], state.least_R[other_row])).nonzero()[:, 0]
    order = gains[change[gains].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device)
    best = torch.full_like(state.left_R, len(order))
    for row in (one_row, other_row):
        best.scatter_reduce_(0, row[order], rank, "amin")
    return order[(best[one_row[order]] == rank) & (best[other_row[order]] == rank)]
