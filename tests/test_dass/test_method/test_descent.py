"""The loop of the re-fits by gradient: inside the mask, the best kept, stopped when nothing gets better."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dass.method.descent import Batches, Descent, descend

TARGET = torch.tensor([4.0, -3.0, 2.0, 1.0])
START = torch.tensor([1.0, 1.0, 0.0, 1.0])
MOVES = torch.tensor([True, True, False, True])


def towards(error: Callable[[Tensor], float], **options: Any) -> Descent:
    """From START towards TARGET, judged by `error`."""

    def gradients(masters: Mapping[str, Tensor]) -> list[Tensor]:
        return [2.0 * (masters["w"].detach() - TARGET)]

    asked = {"steps": 400, "every": 10, "learning_rate": 0.05} | options
    return descend({"w": START}, {"w": MOVES}, gradients, lambda values: error(values["w"]), **asked)


def distance(value: Tensor) -> float:
    return float((value - TARGET).square().sum())


def test_what_moves_comes_near_the_target_and_the_rest_stays() -> None:
    done = towards(distance)
    assert done.values["w"][~MOVES].tolist() == [0.0]
    assert torch.allclose(done.values["w"][MOVES], TARGET[MOVES], atol=0.1)
    assert (done.before, done.steps) == (distance(START), 400)
    assert done.after == distance(done.values["w"])


def test_the_best_that_was_seen_is_kept() -> None:
    """A judge that likes the way's middle best gets it; one that likes nothing better than the start gets that."""
    done = towards(lambda value: abs(float(value[0]) - 2.5))
    assert abs(float(done.values["w"][0]) - 2.5) < 0.5
    assert done.after < done.before
    for judge in (lambda value: float(value[0]), lambda value: float("nan") if value[0] > 1.0 else 9.0):
        start = towards(judge)
        assert torch.equal(start.values["w"], START)
        assert start.after == start.before


def test_patience_ends_it_early() -> None:
    assert towards(lambda value: float(value[0]), patience=2).steps == 20
    assert towards(distance, patience=2).steps > 100


def test_nothing_is_done_where_nothing_is_wrong() -> None:
    done = towards(lambda _: 0.0)
    assert done.steps == 0
    assert torch.equal(done.values["w"], START)


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_every_row_is_used_once_before_any_again(size: int) -> None:
    batches = Batches(10, size, seed=0)
    first = [row for _ in range(10 // min(size, 10)) for row in next(batches).tolist()]
    assert len(set(first)) == len(first) == 10 // min(size, 10) * min(size, 10)
