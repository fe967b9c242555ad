import math

import pytest

from benchmarks.search_front import dominated, front, grid, searched
from dass.errors import InputError


def test_the_grid_has_as_many_points_as_the_search() -> None:
    assert grid(20) == ["prune.sparsity=0.3,0.4,0.5,0.6,0.7", "prune.alpha=0,0.333,0.667,1"]
    assert grid(8)[0] == "prune.sparsity=0.3,0.7"
    assert {"sweep.trials=20", "sweep.seed=3"} <= set(searched("tpe", 20, 3))
    for trials in (4, 21):
        with pytest.raises(InputError, match="multiple of 4"):
            grid(trials)


def test_the_front_is_what_none_beats() -> None:
    points = [(0.5, 1.4), (0.3, 1.1), (0.5, 1.3), (0.4, 1.3), (0.7, 3.0), (0.3, 1.1)]
    assert front(points) == [(0.3, 1.1), (0.5, 1.3), (0.7, 3.0)]


def test_the_area_is_that_of_the_steps_under_the_front() -> None:
    corner = (0.25, math.e**2)
    assert dominated([(0.5, math.e)], corner) == pytest.approx(0.25)
    two = [(0.5, math.e), (0.75, math.e**1.5)]
    assert dominated(two, corner) == pytest.approx(0.25 + 0.25 * 0.5)
    assert dominated([*two, (0.4, math.e)], corner) == dominated(two, corner)  # a beaten point adds nothing
    assert dominated([(0.9, math.e**3)], corner) == 0.0  # worse than the corner
