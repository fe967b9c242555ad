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

from dass.method.scores import NAN, Scores

_BLOCK_ELEMENTS = 1 << 18
_TIED_ELEMENTS = 1 << 22  # bounds the temporaries where many equal scores meet at a cut
_LINE_BYTES = 64  # of the cache

Numbers = NDArray[Any]


def keep_largest(scores: Scores, removed: int) -> Tensor:
    """All but the `removed` smallest of each row, 0 < removed: bool (R, N). Among equals the one in front goes first.

    Args:
        scores: of any rows; of a transposed view the result is one, too.
        removed: how many go.

    Raises:
        ValueError: a score is NaN.
    """
    is_upright = scores.matrix_RN.stride(1) == 1
    lying = scores if is_upright else scores.T  # as it lies in memory
    keep = torch.empty(lying.shape, dtype=torch.bool)
    kth_R, quota_R = _cuts(scores, removed, keep.numpy() if is_upright else None)
    if not is_upright:

        def compare(begin: int, end: int) -> None:
            np.greater(_numbers(lying.rows(slice(begin, end))), kth_R.numpy(), out=keep.numpy()[begin:end])

        _in_threads(compare, len(keep), max(1, _BLOCK_ELEMENTS // max(1, len(kth_R))))
    keep_RN = keep if is_upright else keep.T
    for tied in quota_R.nonzero().view(-1).split(max(1, _TIED_ELEMENTS // scores.shape[1])):
        row, column = (scores.rows(tied).whole() == kth_R[tied, None]).nonzero(as_tuple=True)  # in order
        ends_R = torch.bincount(row, minlength=len(tied)).cumsum(0)
        number = torch.arange(len(row)) - torch.cat([ends_R.new_zeros(1), ends_R[:-1]])[row]
        stays = number >= quota_R[tied][row]  # the first of them go
        keep_RN[tied[row[stays]], column[stays]] = True
    return keep_RN


def _cuts(scores: Scores, k: int, keep_RN: NDArray[np.bool_] | None) -> tuple[Tensor, Tensor]:
    """Where to cut each row so that its k smallest scores go.

    Args:
        scores: of R rows.
        k: more than 0.
        keep_RN: gets what is larger than each row's cut; None: nobody asks.

    Returns:
        The k-th smallest of each row (R,); and how many of the scores that equal it are among the k, int64 (R,), 0
        where all are: then there is nothing to choose between them.
    """
    rows, size = scores.shape
    kth_R, quota_R = torch.empty(rows, dtype=scores.dtype), torch.zeros(rows, dtype=torch.int64)

    def cut(begin: int, end: int) -> None:
        numbers = _numbers(scores.rows(slice(begin, end)))
        in_order = numbers if keep_RN is None else numbers.copy()
        in_order.partition(k - 1, axis=1)
        _check(in_order[:, k - 1 :])  # where NaN would be
        kth_r = in_order[:, k - 1]
        kth_R.numpy()[begin:end] = kth_r
        if keep_RN is not None:
            np.greater(numbers, kth_r[:, None], out=keep_RN[begin:end])
        if k < size and (tied_r := in_order[:, k:].min(axis=1) == kth_r).any():
            equal_rk = in_order[tied_r, :k] == kth_r[tied_r, None]
            quota_R.numpy()[begin:end][tied_r] = np.count_nonzero(equal_rk, axis=1)

    _in_threads(cut, rows, max(1, 4 * _BLOCK_ELEMENTS // size))
    return kth_R, quota_R


def keep_in_groups(scores: Scores, group: int, removed: int, axis: int) -> Tensor:
    """Which weights stay where `removed` of every `group` consecutive ones along an axis go: bool, shape of the scores.

    Every two members of a group are compared once: each learns how many go before it. Among equals the one in front
    goes first.

    Raises:
        ValueError: a score is NaN.
    """
    keep_OC = torch.empty(scores.shape, dtype=torch.bool)
    high = group if axis == 0 else 1  # rows that belong together

    def choose(begin: int, end: int) -> None:
        numbers = _numbers(scores.rows(slice(begin, end)))
        _check(numbers)
        score_M = np.ascontiguousarray(_members(numbers, group, axis))
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

    rows, columns = scores.shape
    _in_threads(choose, rows, max(high, _BLOCK_ELEMENTS // max(1, columns) // high * high))
    return keep_OC


def _check(numbers: Numbers) -> None:
    if numbers.size and np.isnan(numbers.max()):
        raise ValueError(NAN)


def _members(matrix_OC: Numbers, group: int, axis: int) -> Numbers:
    """A view of a matrix as the first, second, ... of every group: (M, O / M, C) or (M, O, C / M)."""
    rows, columns = matrix_OC.shape
    shape = (rows // group, group, columns) if axis == 0 else (rows, columns // group, group)
    return np.moveaxis(matrix_OC.reshape(shape), axis + 1, 0)


def _numbers(scores: Scores) -> Numbers:
    """Scores written out, rows in one piece. By numpy: torch would start threads of its own in each of ours.

    Rows of a transposed view are taken so many at a time as lie side by side.
    """
    matrix_RN, wide = scores.matrix_RN.detach(), torch.empty(0, dtype=scores.dtype).numpy().dtype
    numbers = np.empty(tuple(scores.shape), dtype=wide)
    step = len(numbers) if matrix_RN.stride(1) == 1 else _LINE_BYTES // matrix_RN.element_size()
    for begin in range(0, len(numbers), max(1, step)):
        some = slice(begin, begin + step)
        _widen(matrix_RN[some], numbers[some], scores.of_weights)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity competes, NaN is refused by who asked
        for axis, factor in scores.factors:
            numbers *= factor.numpy() if axis else factor.numpy()[:, None]
    return numbers


def _widen(matrix: Tensor, out: Numbers, is_absolute: bool) -> None:
    """Values, or their absolute values, in a wider type."""
    if matrix.dtype == torch.bfloat16:  # numpy has none: its bits are the upper half of a float32's
        bits = matrix.view(torch.int16).numpy().view(np.uint16)
        out.view(np.uint32)[...] = bits & 0x7FFF if is_absolute else bits
        out.view(np.uint32)[...] <<= 16
        return
    with np.errstate(over="ignore"):
        np.copyto(out, matrix.numpy(), casting="same_kind")
    if is_absolute:
        np.abs(out, out=out)


def _in_threads(work: Callable[[int, int], None], rows: int, step: int) -> None:
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda begin: work(begin, min(begin + step, rows)), range(0, rows, step)))
