"""Transposable 2:4 masks: 2 of 4 along both axes in every 4×4 block, so that W and Wᵀ are 2:4 at once.

Such a mask keeps the DaSS score and its competition along I while the contraction axis obeys 2:4 too, which is what
sparse tensor cores need. There are exactly 90 4×4 blocks with two ones in every row and column; all of them are tried.
"""

from itertools import combinations, product

import torch
from torch import Tensor

from dass.errors import InputError

_SIDE = 4
_KEPT = 2
_CHUNK_BLOCKS = 1 << 18  # bounds the (blocks, 90) sums to 180 MB in float64


def transposable_mask(score_OC: Tensor) -> Tensor:
    """The 4×4-block mask with the largest sum of scores: bool (O, C), True = kept, exactly 2 of 4 along both axes.

    Args:
        score_OC: importance of each weight (O, C), any float dtype, larger = keep. Sums are taken in float64, so that
            a huge score does not hide its neighbours. Ties: the first of `transposable_patterns`.

    Raises:
        InputError: O or C is not a multiple of 4.
        ValueError: a score is NaN or infinite.
    """
    if score_OC.ndim != 2 or score_OC.shape[0] % _SIDE or score_OC.shape[1] % _SIDE:
        raise InputError(
            f"a transposable mask needs sizes that are multiples of 4, the scores have shape {tuple(score_OC.shape)}. "
            'Choose layout "paper" or "contraction".'
        )
    if not score_OC.isfinite().all():
        raise ValueError("importance scores contain NaN or infinity")
    rows, columns = score_OC.shape
    patterns_PK = transposable_patterns().view(-1, _SIDE * _SIDE).to(score_OC.device)
    blocks = score_OC.reshape(rows // _SIDE, _SIDE, columns // _SIDE, _SIDE).transpose(1, 2).reshape(-1, _SIDE * _SIDE)
    chunks = [_best(chunk, patterns_PK) for chunk in blocks.split(_CHUNK_BLOCKS)]
    keep = torch.cat(chunks).view(rows // _SIDE, columns // _SIDE, _SIDE, _SIDE)
    return keep.transpose(1, 2).reshape(rows, columns)


def transposable_patterns() -> Tensor:
    """All 4×4 0/1 blocks with 2 ones in each row and column: bool (90, 4, 4), ordered by kept columns."""
    rows = [[column in kept for column in range(_SIDE)] for kept in combinations(range(_SIDE), _KEPT)]
    blocks = torch.tensor(list(product(rows, repeat=_SIDE)))
    return blocks[(blocks.sum(dim=1) == _KEPT).all(dim=1)]


def _best(score_BK: Tensor, patterns_PK: Tensor) -> Tensor:
    """For each of B flattened blocks the pattern that keeps most: bool (B, 16)."""
    sum_BP = score_BK.double() @ patterns_PK.T.double()
    # argmax promises no order among equals; the first of the maxima is asked for by its index.
    count = patterns_PK.shape[0]
    index_P = torch.arange(count, device=score_BK.device)
    first_B = torch.where(sum_BP == sum_BP.amax(dim=1, keepdim=True), index_P, count).amin(dim=1)
    return patterns_PK[first_B]
