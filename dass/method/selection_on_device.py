"""What `dass.method.selection` does on the host, for tensors on any device: the host waits for one result.

R rows, N scores in each; O, C the axes of a matrix.
"""

import torch
from torch import Tensor

from dass.method.scores import NAN, Scores

_CHUNK_ELEMENTS = 1 << 24  # bounds the temporaries of a selection to about 200 MB


def keep_largest(scores: Scores, removed: int) -> Tensor:
    """All but the `removed` smallest of each row, 0 < removed: bool (R, N). Among equals the one in front goes first.

    Args:
        scores: of any rows.
        removed: how many go.

    Raises:
        ValueError: a score is NaN. That is all that the host waits for.
    """
    score_RN = whole_checked(scores)
    rows = max(1, _CHUNK_ELEMENTS // score_RN.shape[1])
    return torch.cat([_keep_largest(some.contiguous(), removed) for some in score_RN.split(rows)])


def _keep_largest(score_RN: Tensor, removed: int) -> Tensor:
    kth_R1 = score_RN.kthvalue(removed, dim=1, keepdim=True).values
    below_RN = score_RN < kth_R1
    equal_RN = score_RN == kth_R1
    equal_RN &= equal_RN.cumsum(dim=1, dtype=torch.int32) <= removed - below_RN.sum(dim=1, keepdim=True)
    return (below_RN | equal_RN).logical_not_()


def keep_in_groups(scores: Scores, group: int, removed: int, axis: int) -> Tensor:
    """Which stay where `removed` of every `group` consecutive ones along an axis go: bool, shape of the scores.

    Raises:
        ValueError: as above.
    """
    score_OC = whole_checked(scores)
    members = score_OC.unflatten(axis, (-1, group)).movedim(axis + 1, 0).contiguous()
    kept_members: list[Tensor] = []
    for i, score in enumerate(members):
        before = torch.zeros(score.shape, dtype=torch.uint8, device=score.device)
        for j, other in enumerate(members):
            if j != i:
                before += (other <= score) if j < i else (other < score)
        kept_members.append(before >= removed)
    return torch.stack(kept_members, dim=axis + 1).view(score_OC.shape)


def whole_checked(scores: Scores) -> Tensor:
    """Scores written out.

    Raises:
        ValueError: one is NaN.
    """
    score_RN = scores.whole()
    if score_RN.numel() and score_RN.amax().isnan():
        raise ValueError(NAN)
    return score_RN
