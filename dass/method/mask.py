"""Which weights stay: selection inside competing groups. Nothing here knows where the scores come from.

Ties: among equal scores the one with the lower index along the competing axis goes first (row-major index when the
whole matrix competes). So a mask depends on nothing but its scores.
"""

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method.pattern import Pattern

_CHUNK_ELEMENTS = 1 << 24  # bounds the temporaries of a selection to about 200 MB
_PAIRWISE_GROUP = 16  # up to this M, M² comparisons beat a selection per group


def keep_mask(score_OC: Tensor, pattern: Pattern, axis: int | None) -> Tensor:
    """The keep mask of one matrix: bool, shape of the scores, True = kept.

    Args:
        score_OC: importance of each weight, any float dtype, larger = keep.
        pattern: how many of a competing group stay.
        axis: 0 when the weights of a column compete, 1 when those of a row do, None when all do. N:M groups are M
            consecutive weights along `axis` (along 1 when `axis` is None).

    Raises:
        InputError: M does not divide the size of the axis.
        ValueError: a score is NaN.
    """
    if score_OC.isnan().any():
        raise ValueError("importance scores contain NaN")
    if pattern.group is None:
        if axis is None:
            return _keep_largest(score_OC.reshape(-1, 1), pattern).view(score_OC.shape)
        competing_N = score_OC if axis == 0 else score_OC.T
        keep_N = _keep_largest(competing_N, pattern)
        return keep_N if axis == 0 else keep_N.T.contiguous()
    return _keep_in_groups(score_OC, pattern, 1 if axis is None else axis)


def check_divisible(size: int, pattern: Pattern, what: str) -> None:
    """Refuse an axis that N:M groups cannot tile.

    Raises:
        InputError: names `what`, the size and M.
    """
    if pattern.group is not None and size % pattern.group:
        raise InputError(
            f'{what} is {size}, not a multiple of M={pattern.group}. Choose another pattern, or "unstructured".'
        )


def _keep_largest(score_NR: Tensor, pattern: Pattern) -> Tensor:
    """Keep the largest of the N scores of each of R columns."""
    size = score_NR.shape[0]
    removed = pattern.removed_from(size)
    if removed == 0:
        return torch.ones_like(score_NR, dtype=torch.bool)
    columns = max(1, _CHUNK_ELEMENTS // size)
    return torch.cat([_keep_above_kth(chunk, removed) for chunk in score_NR.split(columns, dim=1)], dim=1)


def _keep_above_kth(score_NR: Tensor, removed: int) -> Tensor:
    # Competing weights are made adjacent in memory: selection reads each group once.
    score_RN = score_NR.T.contiguous()
    kth_R1 = score_RN.kthvalue(removed, dim=1, keepdim=True).values
    below_RN = score_RN < kth_R1
    equal_RN = score_RN == kth_R1
    quota_R1 = removed - below_RN.sum(dim=1, keepdim=True)
    if not torch.equal(equal_RN.sum(dim=1, keepdim=True), quota_R1):
        equal_RN &= equal_RN.cumsum(dim=1, dtype=torch.int32) <= quota_R1
    return (below_RN | equal_RN).logical_not_().T


def _keep_in_groups(score_OC: Tensor, pattern: Pattern, axis: int) -> Tensor:
    assert pattern.group is not None
    assert pattern.keep is not None
    rows, columns = score_OC.shape
    check_divisible(score_OC.shape[axis], pattern, f"axis {axis} of a {rows} × {columns} matrix")
    removed = pattern.group - pattern.keep
    if pattern.group > _PAIRWISE_GROUP:
        along = score_OC.T if axis == 0 else score_OC
        keep = _keep_above_kth(along.reshape(-1, pattern.group).T, removed).T.reshape(along.shape)
        return (keep.T if axis == 0 else keep).contiguous()
    shape = (
        (rows // pattern.group, pattern.group, columns)
        if axis == 0
        else (rows, columns // pattern.group, pattern.group)
    )
    group_axis = 1 if axis == 0 else 2
    members = score_OC.reshape(shape).movedim(group_axis, 0).contiguous()  # adjacent in memory: M² quick comparisons
    kept_members: list[Tensor] = []
    for i, score in enumerate(members):
        rank = torch.zeros(score.shape, dtype=torch.uint8, device=score.device)
        for j, other in enumerate(members):
            if j != i:
                rank += (other <= score) if j < i else (other < score)
        kept_members.append(rank >= removed)
    return torch.stack(kept_members, dim=group_axis).view(rows, columns)
