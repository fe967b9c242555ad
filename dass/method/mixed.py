"""Which matrix gives up how much, under one total: the choice with the least sum of costs, solved exactly.

Each matrix has its options (kept dense, 4:8, 2:4, a share), of which it takes one. That is a knapsack in which every
item is one of several: an integer programme, which HiGHS solves by way of scipy.
"""

import math
from collections.abc import Sequence

from dass.errors import InputError


def cheapest(costs: Sequence[Sequence[float]], removed: Sequence[Sequence[float]], total: float) -> list[int]:
    """For each matrix the number of its option, so that the sum of costs is least and `total` weights go, or more.

    Costs are taken to add up, which is what one can know of matrices that were measured one at a time.

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
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import lil_array

    flat = [(matrix, option) for matrix, each in enumerate(costs) for option in range(len(each))]
    one_each = lil_array((len(costs), len(flat)))
    for column, (matrix, _) in enumerate(flat):
        one_each[matrix, column] = 1.0
    # Shares instead of counts and costs, so that the solver's tolerances mean the same for every model.
    largest = max(max(map(abs, each)) for each in costs) or 1.0
    scale = total or 1.0
    found = milp(
        [costs[matrix][option] / largest for matrix, option in flat],
        integrality=[1] * len(flat),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each.tocsr(), 1.0, 1.0),
            LinearConstraint(
                [[removed[matrix][option] / scale for matrix, option in flat]], total / scale - 1e-9, math.inf
            ),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if not found.success:
        raise InputError(f"No choice of options removes {total:g} weights ({found.message}).")
    chosen = [0] * len(costs)
    for (matrix, option), taken in zip(flat, found.x, strict=True):
        if taken > 0.5:
            chosen[matrix] = option
    return chosen
