"""The scores of one matrix, as what they are made of: a selection asks for some of them at a time.

Written out they are the largest thing that pruning a layer would hold, and a fresh gigabyte costs as much as what is
computed with it.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

NAN = "importance scores contain NaN"
_CACHED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Scores:
    """Importance of the weights of a matrix (R, N): larger = keep.

    Attributes:
        matrix_RN: weights, or the scores themselves; may be a transposed view.
        factors: of rows (axis 0, shape (R,)) or columns (axis 1, shape (N,)), float32, in the order in which they are
            multiplied.
        of_weights: whether the matrix counts by its absolute values.
    """

    matrix_RN: Tensor
    factors: tuple[tuple[int, Tensor], ...] = ()
    of_weights: bool = False

    @property
    def shape(self) -> torch.Size:
        """(R, N)."""
        return self.matrix_RN.shape

    @property
    def device(self) -> torch.device:
        """Where the matrix is."""
        return self.matrix_RN.device

    @property
    def dtype(self) -> torch.dtype:
        """Float32, or what holds given scores exactly."""
        return torch.float32 if self.of_weights else torch.promote_types(self.matrix_RN.dtype, torch.float32)

    @property
    def T(self) -> Self:
        """Rows and columns exchanged."""
        return type(self)(self.matrix_RN.T, tuple((1 - axis, factor) for axis, factor in self.factors), self.of_weights)

    def rows(self, some: slice | Tensor) -> Self:
        """Those of some rows."""
        factors = ((axis, factor[some] if axis == 0 else factor) for axis, factor in self.factors)
        return type(self)(self.matrix_RN[some], tuple(factors), self.of_weights)

    def whole(self) -> Tensor:
        """All of them, (R, N)."""
        if not self.of_weights:
            return self.matrix_RN.to(self.dtype)
        score_RN = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        step = max(1, len(score_RN))
        if self.device.type == "cpu":  # a few rows at a time: what is worked on stays in the cache
            step = max(1, _CACHED_ELEMENTS // max(1, self.shape[1]))
        for begin in range(0, len(score_RN), step):
            some = slice(begin, begin + step)
            part_RN = score_RN[some].copy_(self.matrix_RN[some]).abs_()
            for axis, factor in self.factors:
                part_RN.mul_(factor[None, :] if axis else factor[some, None])
        return score_RN
