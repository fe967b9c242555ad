"""Statistics of one GLU MLP over the calibration tokens: norms, and Gram matrices where a method wants them.

Axes: N tokens (or B windows, T tokens), H hidden, I intermediate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dass.method.gram import GramSum
from dass.method.score import ActivationNorms


@dataclass(frozen=True)
class MlpStatistics:
    """What one MLP saw.

    Attributes:
        tokens: how many tokens it was given.
        norms: L2 norms of its input channels and of its intermediate neurons.
        gram_x_HH: XᵀX of its inputs, float32, or None when not collected.
        gram_z_II: ZᵀZ of its dense intermediate activations, float32, or None when not collected.
        starved: it is an expert that the router gave too few tokens; these are of all of its layer's tokens instead.
    """

    tokens: int
    norms: ActivationNorms
    gram_x_HH: Tensor | None = None
    gram_z_II: Tensor | None = None
    starved: bool = False

    @property
    def is_finite(self) -> bool:
        """False when an activation was NaN or infinite."""
        return bool(self.norms.x_H.isfinite().all() and self.norms.z_I.isfinite().all())


class StatisticsSum:
    """Adds up batches. Sums are float32 inside a window and float64 across windows and batches."""

    def __init__(self, sizes: tuple[int, int], device: torch.device, *, gram_x: bool, gram_z: bool) -> None:
        """Start from nothing for an MLP of `sizes` (I, H)."""
        intermediate, hidden = sizes

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._tokens = zeros(1)
        self._squares_x_H, self._squares_z_I = zeros(hidden), zeros(intermediate)
        self._gram_x = GramSum(hidden, device) if gram_x else None
        self._gram_z = GramSum(intermediate, device) if gram_z else None

    def add(self, x: Tensor, z: Tensor) -> None:
        """Add a batch: x (B, T, H) or (N, H), and z of the same tokens (..., I)."""
        self._tokens += x.shape[:-1].numel()
        self._squares_x_H += _sum_of_squares(x)
        self._squares_z_I += _sum_of_squares(z)
        if self._gram_x is not None:
            self._gram_x.add(x)
        if self._gram_z is not None:
            self._gram_z.add(z)

    def merge(self, sum_: Callable[..., None]) -> None:
        """Add what other processes have seen: `sum_` adds up tensors over all of them, in place (`Ranks.sum_`)."""
        grams = (each.total_CC for each in (self._gram_x, self._gram_z) if each is not None)
        sum_(self._tokens, self._squares_x_H, self._squares_z_I, *grams)

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return int(self._tokens.item())

    def result(self) -> MlpStatistics:
        """The statistics of all that was added."""
        return MlpStatistics(
            self.tokens,
            ActivationNorms(self._squares_x_H.sqrt(), self._squares_z_I.sqrt()),
            None if self._gram_x is None else self._gram_x.result(),
            None if self._gram_z is None else self._gram_z.result(),
        )


def together(parts: Sequence[MlpStatistics]) -> MlpStatistics:
    """The statistics of all tokens that several statistics of one MLP are of; Gram matrices where all parts have them.

    Args:
        parts: at least one, of disjoint tokens.
    """

    def root(norms: Sequence[Tensor]) -> Tensor:
        return torch.stack([norm.square() for norm in norms]).sum(dim=0).sqrt()

    def total(grams: Sequence[Tensor | None]) -> Tensor | None:
        found = [each for each in grams if each is not None]
        return torch.stack(found).sum(dim=0) if len(found) == len(grams) else None

    if len(parts) == 1:
        return parts[0]
    return MlpStatistics(
        sum(part.tokens for part in parts),
        ActivationNorms(root([part.norms.x_H for part in parts]), root([part.norms.z_I for part in parts])),
        total([part.gram_x_HH for part in parts]),
        total([part.gram_z_II for part in parts]),
        any(part.starved for part in parts),
    )


def _sum_of_squares(x: Tensor) -> Tensor:
    """Sum over windows and tokens: float32 inside a window, float64 across windows, so batches of any size agree.

    One window at a time: a temporary as large as the batch costs more in page faults than the squares do.
    """
    x_BTC = x.reshape(-1, *x.shape[-2:])
    return torch.stack([window.float().square().sum(dim=0) for window in x_BTC]).double().sum(dim=0)
