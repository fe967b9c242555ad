"""Which weights stay: selection inside competing groups. Nothing here knows where the scores come from.

Ties: among equal scores the one with the lower index along the competing axis goes first (row-major index when the
whole matrix competes). So a mask depends on nothing but its scores.
"""

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method import selection, selection_on_device
from dass.method.pattern import Pattern
from dass.method.scores import Scores

_CACHED_ELEMENTS = 1 << 18  # what is compared at once stays in a core's cache
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PAIRWISE_GROUP = 16  # up to this M, M² / 2 comparisons beat a selection per group


def keep_mask(score: Tensor | Scores, pattern: Pattern, axis: int | None) -> Tensor:
    """The keep mask of one matrix: bool, shape of the scores, True = kept.

    Args:
        score: importance of each weight (O, C), any float dtype, larger = keep.
        pattern: how many of a competing group stay.
        axis: 0 when the weights of a column compete, 1 when those of a row do, None when all do. N:M groups are M
            consecutive weights along `axis` (along 1 when `axis` is None).

    Raises:
        InputError: M does not divide the size of the axis.
        ValueError: a score is NaN.
    """
    scores = Scores(score) if isinstance(score, Tensor) else score
    if pattern.group is not None:
        return _keep_in_groups(scores, pattern, 1 if axis is None else axis)
    if axis is None:
        together = Scores(scores.whole().reshape(1, -1))
        return _keep_largest(together, pattern.removed_from(together.shape[1]), 1).view(scores.shape)
    return _keep_largest(scores, pattern.removed_from(scores.shape[axis]), axis)


def check_divisible(size: int, pattern: Pattern, what: str) -> None:
    """Refuse an axis that N:M groups cannot tile.

    Raises:
        InputError: names `what`, the size and M.
    """
    if pattern.group is not None and size % pattern.group:
        raise InputError(
            f'{what} is {size}, not a multiple of M={pattern.group}. Choose another pattern, or "unstructured".'
        )


@torch.no_grad()
def zero_removed_(weight: Tensor, keep: Tensor) -> Tensor:
    """Set what a mask removes to +0.0 in place, and return the weight; what it keeps stays bit for bit.

    Bits times 0 or 1: `masked_fill_` takes one weight at a time on a CPU.

    Args:
        weight: any shape, float, or the bits of floats as integers.
        keep: bool, shape of the weight, on its device; True = kept.
    """
    bits = weight.detach()
    if bits.is_floating_point():
        bits = bits.view(_BITS[bits.element_size()])
    if bits.device.type == "cpu" and bits.is_contiguous():
        for some, kept in zip(
            bits.view(-1).split(_CACHED_ELEMENTS), keep.reshape(-1).split(_CACHED_ELEMENTS), strict=True
        ):
            some.mul_(kept.to(some.dtype))
    else:
        bits.mul_(keep)
    return weight


def _keep_largest(scores: Scores, removed: int, axis: int) -> Tensor:
    """Keep all but the `removed` smallest along an axis."""
    if removed in (0, scores.shape[axis]):
        selection_on_device.whole_checked(scores)
        return torch.full(scores.shape, removed == 0, dtype=torch.bool, device=scores.device)
    along = scores if axis == 1 else scores.T
    keep_largest = selection.keep_largest if scores.device.type == "cpu" else selection_on_device.keep_largest
    keep_RN = keep_largest(along, removed)
    return keep_RN if axis == 1 else keep_RN.T.contiguous()


def _keep_in_groups(scores: Scores, pattern: Pattern, axis: int) -> Tensor:
    assert pattern.group is not None
    assert pattern.keep is not None
    rows, columns = scores.shape
    check_divisible(scores.shape[axis], pattern, f"axis {axis} of a {rows} × {columns} matrix")
    group, removed = pattern.group, pattern.group - pattern.keep
    if group > _PAIRWISE_GROUP:
        score_OC = scores.whole()
        along = score_OC.T if axis == 0 else score_OC
        keep = _keep_largest(Scores(along.reshape(-1, group)), removed, 1).view(along.shape)
        return (keep.T if axis == 0 else keep).contiguous()
    on_host = scores.device.type == "cpu"
    choose = selection.keep_in_groups if on_host else selection_on_device.keep_in_groups
    return choose(scores, group, removed, axis)
