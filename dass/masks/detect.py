"""Which N:M patterns a weight obeys, read off its zeros, and whether sparse tensor cores can run it.

`torch.sparse.to_sparse_semi_structured` checks shape and dtype but not the pattern: given any other weight it drops
values silently. Here the pattern is checked. Axes: O out_features (0), C in_features (1, the contraction axis).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method.pattern import Pattern

GROUPS = (4, 8, 16)
"""The M that are looked for."""

_FIRST_ROWS = 16

# dtype -> (O, C) must be multiples of. torch 2.13, SparseSemiStructuredTensorCUSPARSELT, which is what
# to_sparse_semi_structured builds; it has no float32.
_SPARSE_CORE_SIZES: dict[torch.dtype, tuple[int, int]] = {
    torch.float16: (16, 16),
    torch.bfloat16: (16, 16),
    torch.int8: (32, 32),
    torch.float8_e4m3fn: (32, 32),
}


@dataclass(frozen=True)
class WeightPattern:
    """What the zeros of a weight (O, C) look like.

    Attributes:
        zero_share: share of weights that are zero.
        along_out: N:M patterns obeyed by M consecutive out_features of each column, smallest M first. A pattern that
            one with a smaller M implies is left out (2:4 implies 4:8), so the last one is the tightest. Empty: none.
        along_in: the same for M consecutive in_features of each row.
    """

    zero_share: float
    along_out: tuple[Pattern, ...]
    along_in: tuple[Pattern, ...]


def pattern_of(weight_OC: Any) -> WeightPattern:
    """The N:M patterns with M of 4, 8 and 16 that a weight obeys along either axis, and its share of zeros.

    N is the largest count of nonzero weights in any group, at least 1 (a weight of zeros is 1:4); N = M is no pattern,
    nor is one that accounts for less than half of the zeros (13:16 in a small weight that is half zeros is chance). A
    size that M does not divide has no groups of M. Any dtype; −0.0 is zero, NaN is not.

    Raises:
        InputError: the weight is no tensor, not a matrix, or is empty.
    """
    if not isinstance(weight_OC, Tensor):
        raise InputError(
            f"the weight is a {type(weight_OC).__name__}: expected a tensor (out_features, in_features), such as "
            "module.weight."
        )
    if weight_OC.ndim != 2 or weight_OC.numel() == 0:
        raise InputError(
            f"the weight has shape {tuple(weight_OC.shape)}: expected a matrix (out_features, in_features)."
        )
    nonzero_OC = weight_OC != 0
    zero_share = (weight_OC.numel() - int(nonzero_OC.sum())) / weight_OC.numel()
    return WeightPattern(zero_share, _along_rows(nonzero_OC.T, zero_share), _along_rows(nonzero_OC, zero_share))


def runs_on_sparse_tensor_cores(weight_OC: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether torch's 2:4 kernels compute with exactly this weight (given `dtype`: with any weight under this mask).

    True when at most 2 of every 4 consecutive in_features are nonzero, the dtype has a kernel (float16, bfloat16, int8,
    float8_e4m3fn) and both sizes are multiples of what `torch.sparse.to_sparse_semi_structured` asks for. Says nothing
    about speed, which depends on the card and the batch.
    """
    dtype = dtype or weight_OC.dtype
    if weight_OC.ndim != 2 or dtype not in _SPARSE_CORE_SIZES or weight_OC.numel() == 0:
        return False
    if any(size % multiple for size, multiple in zip(weight_OC.shape, _SPARSE_CORE_SIZES[dtype], strict=True)):
        return False
    # Most that are not 2:4 show it in their first rows.
    return all(_most_in_a_group(some_OC != 0, 4) <= 2 for some_OC in (weight_OC[:_FIRST_ROWS], weight_OC))


def _along_rows(nonzero_RN: Tensor, zero_share: float) -> tuple[Pattern, ...]:
    found: list[Pattern] = []
    for group in GROUPS:
        if nonzero_RN.shape[1] % group:
            continue
        keep = max(1, _most_in_a_group(nonzero_RN, group))
        pattern = Pattern(keep, group, (group - keep) / group)
        is_new = all(pattern.sparsity > other.sparsity for other in found)
        if keep < group and is_new and 2 * pattern.sparsity >= zero_share:
            found.append(pattern)
    return tuple(found)


def _most_in_a_group(nonzero_RN: Tensor, group: int) -> int:
    return int(nonzero_RN.reshape(-1, group).sum(dim=1, dtype=torch.uint8).amax())
