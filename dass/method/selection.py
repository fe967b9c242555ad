"""What a mask is chosen by, on the host: cuts of rows, and comparisons inside small groups.

numpy's partition and comparisons take many scores in one instruction, carry no indices along and leave Python's lock,
so some rows at a time, which stay in a core's cache, are chosen from in every thread that torch would use. On 2 cores
that is 3 to 8 times as fast as `torch.kthvalue` and torch's comparisons of whole matrices; what is found is the same.

R rows, N scores in each; O, C the axes of a matrix.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 18
_TIED_ELEMENTS = 1 << 22  # bounds the temporaries where many equal scores meet at a cut
_STRIP = 16  # scores of a row that lie in one line of the cache

Scores = NDArray[Any]


def keep_largest(score_RN: Tensor, removed: int) -> Tensor:
    """All but the `removed` smallest of each row, 0 < removed: bool (R, N). Among equals the one in front goes first.

    Args:
        score_RN: float, no NaN; may be a transposed view, which the result then is, too.
        removed: how many go.
    """
    kth_R, quota_R = _cuts(score_RN, removed)
    keep_RN = score_RN > kth_R[:, None]
    for tied in quota_R.nonzero().view(-1).split(max(1, _TIED_ELEMENTS // score_RN.shape[1])):
        row, column = (score_RN[tied] == kth_R[tied, None]).nonzero(as_tuple=True)  # in order
        ends_R = torch.bincount(row, minlength=len(tied)).cumsum(0)
        number = torch.arange(len(row)) - torch.cat([ends_R.new_zeros(1), ends_R[:-1]])[row]
        stays = number >= quota_R[tied][row]  # the first of them go
        keep_RN[tied[row[stays]], column[stays]] = True
    return keep_RN


def _cuts(score_RN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where to cut each row so that its k smallest scores go.

    Returns:
        The k-th smallest of each row (R,), in a type that holds it exactly; and how many of the scores that equal it
        are among the k, int64 (R,), 0 where all are: then there is nothing to choose between them.
    """
    rows, size = score_RN.shape
    wide = torch.promote_types(score_RN.dtype, torch.float32)  # numpy has no bfloat16
    kth_R, quota_R = torch.empty(rows, dtype=wide), torch.zeros(rows, dtype=torch.int64)

    def cut(begin: int, end: int) -> None:
        numbers = _copied(score_RN[begin:end], wide).numpy()
        numbers.partition(k - 1, axis=1)
        kth_r = numbers[:, k - 1]
        kth_R.numpy()[begin:end] = kth_r
        if k < size and (tied_r := numbers[:, k:].min(axis=1) == kth_r).any():
            equal_rk = numbers[tied_r, :k] == kth_r[tied_r, None]
            quota_R.numpy()[begin:end][tied_r] = np.count_nonzero(equal_rk, axis=1)

    _in_threads(cut, rows, max(1, 4 * _BLOCK_ELEMENTS // size))
    return kth_R, quota_R


def keep_in_groups(score_OC: Tensor, group: int, removed: int, axis: int) -> Tensor:
    """Which weights stay where `removed` of every `group` consecutive ones along an axis go: bool, shape of the scores.

    Every two members of a group are compared once: each learns how many go before it. Among equals the one in front
    goes first.
    """
    wide = torch.promote_types(score_OC.dtype, torch.float32)
    keep_OC = torch.empty(score_OC.shape, dtype=torch.bool)
    high = group if axis == 0 else 1  # rows that belong together

    def choose(begin: int, end: int) -> None:
        score_M = np.ascontiguousarray(_members(score_OC[begin:end].to(wide).numpy(), group, axis))
        keep_M = _members(keep_OC.numpy()[begin:end], group, axis)
        before_M = np.empty(score_M.shape, dtype=np.int8)
        for i in range(group):
            before_M[i] = group - 1 - i  # those behind it, until one turns out to be no smaller
        first = np.empty(score_M.shape[1:], dtype=np.bool_)
        for i in range(group):
            for j in range(i):
                np.less_equal(score_M[j], score_M[i], out=first)
                before_M[i] += first.view(np.int8)
                before_M[j] -= first.view(np.int8)
        np.greater_equal(before_M, removed, out=keep_M)

    rows, columns = score_OC.shape
    _in_threads(choose, rows, max(high, _BLOCK_ELEMENTS // max(1, columns) // high * high))
    return keep_OC


def _members(matrix_OC: Scores, group: int, axis: int) -> Scores:
    """A view of a matrix as the first, second, ... of every group: (M, O / M, C) or (M, O, C / M)."""
    rows, columns = matrix_OC.shape
    shape = (rows // group, group, columns) if axis == 0 else (rows, columns // group, group)
    return np.moveaxis(matrix_OC.reshape(shape), axis + 1, 0)


def _copied(score_RN: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with rows in one piece. Rows of a transposed view are taken so many at a time as lie side by side."""
    copy_RN = torch.empty(score_RN.shape, dtype=dtype)
    if score_RN.stride(1) == 1:
        return copy_RN.copy_(score_RN)
    for some, out in zip(score_RN.split(_STRIP), copy_RN.split(_STRIP), strict=True):
        np.copyto(out.numpy(), some.T.contiguous().to(dtype).numpy().T)
    return copy_RN


def _in_threads(work: Callable[[int, int], None], rows: int, step: int) -> None:
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda begin: work(begin, min(begin + step, rows)), range(0, rows, step)))
