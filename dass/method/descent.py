"""Adam on weights inside their masks: the loop of every re-fit that has no closed form.

What is fitted can be over-fitted, so what is returned is the best that `error` has seen, the start included: let it
look at tokens that `gradients` does not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_LEARNING_RATE = 0.02
"""Of the first step, as a share of the root mean square of a tensor's trained weights: one value serves every model."""

_WARM_UP = 0.05  # share of the steps over which the rate rises: Adam's first steps know no scale yet


@dataclass(frozen=True)
class Descent:
    """Where it ended.

    Attributes:
        values: the best values seen, in the types they came in.
        before: the error of the start.
        after: the error of `values`. Never larger.
        steps: how many were taken.
    """

    values: dict[str, Tensor]
    before: float
    after: float
    steps: int


def descend(
    start: Mapping[str, Tensor],
    moves: Mapping[str, Tensor],
    gradients: Callable[[Mapping[str, Tensor]], Sequence[Tensor]],
    error: Callable[[Mapping[str, Tensor]], float],
    *,
    steps: int,
    every: int,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    patience: int | None = None,
) -> Descent:
    """Take Adam steps (Kingma and Ba 2015, arXiv 1412.6980) from `start` on float32 copies.

    Deterministic where `gradients` and `error` are. Where several processes share the tokens both have to be sums over
    all of them: every process then takes the same steps and the same decisions.

    Args:
        start: name -> values, any float dtype.
        moves: name -> bool, True where a value is trained; the others stay as they are.
        gradients: of the next batch's loss with respect to the float32 values it is given, in their order. They may be
            changed.
        error: of values in the types of `start`. Not a number counts as worse than any.
        steps: at most so many; the rate falls to zero along a cosine.
        every: steps between two looks at the error.
        learning_rate: share of the root mean square of a tensor's trained weights.
        patience: stop after so many looks in a row that found nothing better; None never stops early.
    """
    best = dict(start)
    before = after = error(best)
    masters = {name: value.to(torch.float32, copy=True).requires_grad_() for name, value in start.items()}
    groups = [
        {"params": [master], "lr": learning_rate * _root_mean_square(master, moves[name])}
        for name, master in masters.items()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    step = waited = 0
    while step < steps and waited != patience and after > 0.0:
        step += 1
        for (name, master), gradient in zip(masters.items(), gradients(masters), strict=True):
            master.grad = gradient.mul_(moves[name])
        optimizer.step()
        schedule.step()
        if step == steps or step % every == 0:
            now = {name: master.detach().to(start[name].dtype) + 0.0 for name, master in masters.items()}
            found = error(now)
            waited += 1
            if found < after:  # false for NaN: training that diverged returns what came before
                best, after, waited = now, found, 0
    return Descent(best, before, after, step)


class Batches:
    """Row indices, `size` at a time; every row once before any row again."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self._rows, self._size = rows, min(size, rows)
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.long)

    def __next__(self) -> Tensor:
        if len(self._left) < self._size:
            self._left = torch.randperm(self._rows, generator=self._generator)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


def _root_mean_square(master: Tensor, moves: Tensor) -> float:
    return math.sqrt(float((master.detach() * moves).square().sum()) / max(1, int(moves.sum())))


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, round(_WARM_UP * steps))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
