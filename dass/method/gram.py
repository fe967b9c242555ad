"""Gram matrices, summed over batches.

Axes: N tokens, C channels, D channels of another tensor of the same tokens.
"""

import torch
from torch import Tensor

_BLOCK = 512
"""Channels of a block. Narrower products are slow; of a matrix of fewer than two blocks nothing is left out."""


def gram(x: Tensor, other: Tensor | None = None) -> Tensor:
    """XᵀX over all tokens of a batch (..., C), or OᵀX with another (..., D): float32 (C, C) or (D, C)."""
    x_NC = _rows(x)
    return (x_NC if other is None else _rows(other)).T @ x_NC


class GramSum:
    """XᵀX of all batches. It is symmetric: what lies wholly below the diagonal's blocks is neither computed nor added.

    Attributes:
        total_CC: float64, as far as it is computed. Sums of several processes may be added up in it.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        """Start from nothing."""
        self.total_CC = torch.zeros((channels, channels), dtype=torch.float64, device=device)
        self._block = _BLOCK if channels >= 2 * _BLOCK else max(1, channels)

    def add(self, x: Tensor) -> None:
        """Add a batch (..., C). Its product is float32."""
        x_NC = _rows(x)
        for start, end in self._bands():
            self.total_CC[start:end, start:] += x_NC[:, start:end].T @ x_NC[:, start:]

    def result(self) -> Tensor:
        """XᵀX of all that was added, float32 (C, C)."""
        whole_CC = self.total_CC.float()
        for start, end in self._bands():
            whole_CC[end:, start:end] = whole_CC[start:end, end:].T
        return whole_CC

    def _bands(self) -> list[tuple[int, int]]:
        channels = len(self.total_CC)
        return [(start, min(start + self._block, channels)) for start in range(0, channels, self._block)]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).float()
