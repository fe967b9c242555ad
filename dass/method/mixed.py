"""Which matrix gives up how much, under one total: the choice with the least sum of costs.

Each matrix has its options (kept dense, 4:8, 2:4, a share), of which it takes one. That is a knapsack in which every
item is one of several. Matrices are alike, so an integer programme's solver has far too many nearly equal choices to
tell apart (HiGHS did not end within minutes on 90 matrices of five options); but what options remove are whole numbers
with a large common divisor, and counted in it the knapsack is small enough for dynamic programming, which is exact
(Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11).

M matrices, U units of weights that are to go.
"""

import math
from collections.abc import Sequence

import torch

from dass.errors import InputError

_MOST_UNITS = 2**20
"""With more, a unit is made larger: that many for the total, and every option rounded down to whole ones."""


def cheapest(costs: Sequence[Sequence[float]], removed: Sequence[Sequence[float]], total: float) -> list[int]:
    """For each matrix the number of its option, so that the sum of costs is least and `total` weights go, or more.

    Costs are taken to add up, which is what one can know of matrices that were measured one at a time. Where what the
    options remove has no common divisor above `total` / 2^20, an option counts for up to so much less than it removes.

    Args:
        costs: of each matrix's options, finite.
        removed: how many weights each option removes, likewise.
        total: how many must go.

    Raises:
        InputError: nothing to choose from, counts that differ, a cost that is no number, or a total that the options do
            not reach.
    """
    if not costs or [len(each) for each in costs] != [len(each) for each in removed] or not all(costs):
        raise InputError(
            "costs and removed weights are of different options: expected one each, at least one a matrix."
        )
    if not all(math.isfinite(cost) for each in costs for cost in each):
        raise InputError("a cost is NaN or infinite: expected numbers.")
    most = math.fsum(max(each) for each in removed)
    if total > most * (1 + 1e-12):
        raise InputError(f"{total:g} weights are to go, and the options remove {most:g} at most. Ask for less.")
    units, wanted = _in_units(removed, min(total, most))
    least_U = torch.full((wanted + 1,), math.inf, dtype=torch.float64)  # least cost at which so many go, or more
    least_U[0] = 0.0
    chosen_MU = torch.zeros((len(costs), wanted + 1), dtype=torch.int16)
    for matrix, (prices, gone) in enumerate(zip(costs, units, strict=True)):
        before_U, least_U = least_U, torch.full_like(least_U, math.inf)
        for option, (price, count) in enumerate(zip(prices, gone, strict=True)):
            all_with_it = min(count, wanted + 1)  # up to here it removes enough by itself
            with_it_U = price + torch.cat([before_U[:1].expand(all_with_it), before_U[: wanted + 1 - all_with_it]])
            better_U = with_it_U < least_U
            least_U[better_U] = with_it_U[better_U]
            chosen_MU[matrix, better_U] = option
    found, left = [0] * len(costs), wanted
    for matrix in reversed(range(len(costs))):
        found[matrix] = int(chosen_MU[matrix, left])
        left = max(0, left - units[matrix][found[matrix]])
    return found


def _in_units(removed: Sequence[Sequence[float]], total: float) -> tuple[list[list[int]], int]:
    """What each option removes and what must go, counted in units."""
    unit = float(math.gcd(*(round(count) for each in removed for count in each))) or 1.0
    if any(count != round(count) for each in removed for count in each) or total / unit > _MOST_UNITS:
        unit = max(total, 1.0) / _MOST_UNITS
    wanted = math.ceil(total / unit * (1 - 1e-12))
    units = [[math.floor(count / unit * (1 + 1e-12)) for count in each] for each in removed]
    short = wanted - sum(max(each) for each in units)
    return units, wanted - max(0, short)  # everything there is, rounded down
