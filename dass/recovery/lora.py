"""Low-rank changes of matrices, merged under their masks (arXiv 2106.09685; merged as PERP does, arXiv 2312.15230).

The module computes with W + 2 · B A, removed weights +0.0, so the pattern is exact while it is trained and nothing is
left to merge behind it. Thirty lines in place of peft: that keeps B A beside W, where no mask reaches it.
"""

import torch
from torch import Tensor, nn

_SCALE = 2.0


class Lora(nn.Module):
    """A parametrization of one matrix (O, C), or of stacked ones (E, O, C): `a` (rank, C) and `b` (O, rank) of each."""

    def __init__(self, weight: Tensor, rank: int, keep: Tensor | None, generator: torch.Generator) -> None:
        """`b` starts at 0: the first forward is that of the weight itself.

        Args:
            weight: the matrix.
            rank: of its change.
            keep: False where the mask removes; None: nothing is removed.
            generator: of the CPU, draws `a`.
        """
        super().__init__()
        *stack, rows, columns = weight.shape
        a = torch.randn(*stack, rank, columns, generator=generator, dtype=torch.float32) / columns**0.5
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(*stack, rows, rank, dtype=torch.float32, device=weight.device))
        self.removed = None if keep is None else ~keep

    def forward(self, weight: Tensor) -> Tensor:
        """The changed matrix, in float32."""
        changed = weight + _SCALE * (self.b @ self.a)
        return changed if self.removed is None else changed.masked_fill(self.removed, 0.0)
