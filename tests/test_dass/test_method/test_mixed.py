"""The exact mixed allocation against every choice there is."""

import itertools
import math
import random

import pytest

from dass.errors import InputError
from dass.method.mixed import cheapest


@pytest.mark.parametrize("seed", range(4))
def test_no_choice_of_all_is_cheaper(seed: int) -> None:
    drawn = random.Random(seed)
    costs = [[0.0, *sorted(drawn.random() for _ in range(2))] for _ in range(7)]
    removed = [[0.0, 100.0 * size, 200.0 * size] for size in (drawn.randint(1, 3) for _ in range(7))]
    total = 0.6 * sum(each[-1] for each in removed)

    def cost(choice: tuple[int, ...] | list[int]) -> float:
        return math.fsum(each[option] for each, option in zip(costs, choice, strict=True))

    def gone(choice: tuple[int, ...] | list[int]) -> float:
        return math.fsum(each[option] for each, option in zip(removed, choice, strict=True))

    found = cheapest(costs, removed, total)
    assert gone(found) >= total
    best = min(cost(choice) for choice in itertools.product(range(3), repeat=7) if gone(choice) >= total)
    assert cost(found) == pytest.approx(best, abs=1e-9)


def test_matrices_that_are_nearly_alike_are_told_apart() -> None:
    count, shares = 90, (0.3, 0.4, 0.5, 0.6, 0.7)
    costs = [[0.0, *((1 + matrix / 1e6) * share**2 for share in shares)] for matrix in range(count)]
    removed = [[0.0, *(1536.0 * int(576 * share) for share in shares)] for _ in range(count)]
    found = cheapest(costs, removed, 0.5 * count * 576 * 1536)
    assert set(found) == {3}  # the curve is convex: every other choice costs more than those millionths
    asked = 0.5 * count * 576 * 1536 - (removed[0][3] - removed[0][2])
    assert cheapest(costs, removed, asked) == [*[3] * (count - 1), 2]  # where it spares most


def test_counts_without_a_common_divisor_are_reached_and_hardly_exceeded() -> None:
    drawn = random.Random(0)
    costs = [[0.0, *sorted(drawn.random() for _ in range(2))] for _ in range(7)]
    sizes = [drawn.randrange(10**9, 2 * 10**9) for _ in range(7)]
    removed = [[0.0, size // 3, size // 2] for size in sizes]
    total = 0.6 * sum(each[-1] for each in removed)
    found = cheapest(costs, removed, total)
    assert math.fsum(each[option] for each, option in zip(removed, found, strict=True)) >= total
    best = min(
        math.fsum(each[option] for each, option in zip(costs, choice, strict=True))
        for choice in itertools.product(range(3), repeat=7)
        if sum(each[option] for each, option in zip(removed, choice, strict=True)) >= total * (1 + 7 / 2**20)
    )
    assert math.fsum(each[option] for each, option in zip(costs, found, strict=True)) <= best + 1e-12


def test_nothing_to_remove_costs_nothing_and_everything_takes_the_most() -> None:
    costs, removed = [[0.0, 1.0], [0.0, 2.0]], [[0.0, 10.0], [0.0, 30.0]]
    assert cheapest(costs, removed, 0.0) == [0, 0]
    assert cheapest(costs, removed, 40.0) == [1, 1]
    assert cheapest(costs, removed, 10.0) == [1, 0]


def test_a_total_out_of_reach_and_costs_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="remove 10 at most"):
        cheapest([[0.0, 1.0]], [[0.0, 10.0]], 11.0)
    with pytest.raises(InputError, match="NaN"):
        cheapest([[0.0, math.nan]], [[0.0, 10.0]], 5.0)
    with pytest.raises(InputError, match="different options"):
        cheapest([[0.0, 1.0]], [[0.0]], 5.0)
