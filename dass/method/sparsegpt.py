"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): prune a matrix, let what stays make up for it.

Axes: O out_features, C in_features (the contraction axis), B columns of one block.
Columns are frozen from left to right. Removing a weight costs w² / U_jj², where U is the upper Cholesky factor of the
inverse of H = XᵀX + λI (algorithm 1 of the paper); its error is then spread over the columns to the right of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dass.errors import InputError, NumericalError
from dass.method.mask import check_divisible, keep_mask
from dass.method.pattern import Pattern

DEFAULT_DAMPING = 0.01
"""λ as a share of the mean diagonal of XᵀX, the published code's value."""
DEFAULT_BLOCK_SIZE = 128
"""Columns whose mask is chosen at once, the paper's value."""

_LEAST_DAMPING = 1e-6  # where escalation starts when no damping was asked for
_MOST_DAMPING = 10.0  # beyond this H is not a damped XᵀX any more: the matrix given was not a Gram matrix
_ESCALATION = 10.0


@dataclass(frozen=True)
class SparseGptResult:
    """What SparseGPT made of one matrix.

    Attributes:
        weight_OC: updated weights in the dtype they came in; removed ones are exactly +0.0.
        keep_OC: bool, True = kept.
        damping: the λ used, as a share of the mean diagonal. Larger than asked for when H was singular.
    """

    weight_OC: Tensor
    keep_OC: Tensor
    damping: float


def sparsegpt(
    weight_OC: Tensor,
    gram_CC: Tensor,
    pattern: Pattern,
    damping: float = DEFAULT_DAMPING,
    block_size: int = DEFAULT_BLOCK_SIZE,
    choose: Callable[[Tensor], Tensor] | None = None,
) -> SparseGptResult:
    """Prune one matrix and update the weights that stay.

    Exactly `pattern.removed_from(O · C)` weights go when unstructured (each block of columns gives its share), exactly
    M − N of every M consecutive columns of a row for N:M. Weights whose input was always zero go first; those of
    them that stay keep their value.

    Args:
        weight_OC: dense weights (O, C), any float dtype.
        gram_CC: XᵀX of the layer's inputs, summed (or averaged) over tokens, (C, C), float32 or float64. The arithmetic
            is done in this dtype.
        pattern: unstructured, or N:M along C.
        damping: λ as a share of the mean diagonal of XᵀX. Multiplied by 10 until H can be factored.
        block_size: columns whose mask is chosen at once; rounded down to a multiple of M for N:M.
        choose: gives the whole keep mask (O, C) from the costs of the dense weights, for masks that are not chosen
            column by column (`dass.method.transposable`); the update is the same. `pattern` is then not looked at.

    Raises:
        InputError: shapes, dtype, damping or block size cannot be used, or M does not divide C.
        NumericalError: weights or Gram matrix hold NaN or infinity, or the Gram matrix is indefinite beyond repair.
    """
    check_gram(weight_OC, gram_CC, damping)
    if block_size < 1:
        raise InputError(f"block_size is {block_size}: expected at least 1, for example {DEFAULT_BLOCK_SIZE}.")
    rows, columns = weight_OC.shape
    if choose is None:
        check_divisible(columns, pattern, "in_features")
    if pattern.group is not None:
        block_size = max(1, block_size // pattern.group) * pattern.group

    factor_CC, damping_used = _inverse_factor(gram_CC, damping)
    dead_C = gram_CC.diagonal() <= 0
    work_OC = weight_OC.to(gram_CC.dtype, copy=True)
    chosen_OC = None if choose is None else choose(_cost(work_OC, factor_CC.diagonal(), dead_C))
    keep_OC = torch.ones_like(weight_OC, dtype=torch.bool)
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        block_OB, keep_OB, error_OB = _prune_block(
            work_OC[:, start:end],
            factor_CC[start:end, start:end],
            dead_C[start:end],
            pattern,
            # The running total is rounded, not the block's share, so that the matrix as a whole is exact.
            pattern.removed_from(rows * end) - pattern.removed_from(rows * start),
            None if chosen_OC is None else chosen_OC[:, start:end],
        )
        work_OC[:, start:end] = block_OB
        keep_OC[:, start:end] = keep_OB
        work_OC[:, end:] -= error_OB @ factor_CC[start:end, end:]

    # Adding zero turns a kept −0.0 into +0.0.
    pruned_OC = work_OC.masked_fill_(~keep_OC, 0.0).to(weight_OC.dtype) + 0.0
    if not pruned_OC.isfinite().all():
        raise NumericalError(
            f"SparseGPT's updated weights overflow {weight_OC.dtype}. Use a larger damping than {damping:g}."
        )
    return SparseGptResult(pruned_OC, keep_OC, damping_used)


def check_gram(weight_OC: Tensor, gram_CC: Tensor, damping: float) -> None:
    """Refuse a weight and a Gram matrix that do not belong together.

    Raises:
        InputError: wrong shapes, a Gram matrix that is not float32 or float64, damping negative or not a number.
        NumericalError: NaN or infinity in either.
    """
    if weight_OC.ndim != 2 or gram_CC.shape != (weight_OC.shape[1],) * 2:
        raise InputError(
            f"gram has shape {tuple(gram_CC.shape)} and the weight {tuple(weight_OC.shape)}: "
            "expected (C, C) for a weight (O, C). Give the Gram matrix of this weight's inputs."
        )
    if gram_CC.dtype not in (torch.float32, torch.float64):
        raise InputError(f"gram is {gram_CC.dtype}: expected float32 or float64. Sum XᵀX in one of these.")
    if not 0.0 <= damping <= _MOST_DAMPING:  # also refuses NaN
        raise InputError(
            f"damping is {damping}: expected a share of the diagonal from 0 to {_MOST_DAMPING:g}, for example 0.01."
        )
    for name, tensor in (("weight", weight_OC), ("gram", gram_CC)):
        if not tensor.isfinite().all():
            raise NumericalError(f"{name} holds NaN or infinity.")


def _prune_block(
    weight_OB: Tensor, factor_BB: Tensor, dead_B: Tensor, pattern: Pattern, removed: int, chosen_OB: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Prune the columns of one block; `removed` counts the weights that go when unstructured.

    Returns the block's new weights, its keep mask, and each column's error over its pivot, which the columns to the
    right absorb.
    """
    weight_OB = weight_OB.clone()
    pivot_B = factor_BB.diagonal()
    error_OB = torch.empty_like(weight_OB)
    if chosen_OB is not None:
        keep_OB = chosen_OB
    elif pattern.group is None:
        keep_OB = _without_lowest(_cost(weight_OB, pivot_B, dead_B), removed)
    else:
        keep_OB = torch.empty_like(weight_OB, dtype=torch.bool)
    for j in range(weight_OB.shape[1]):
        if chosen_OB is None and pattern.group is not None and j % pattern.group == 0:
            group = slice(j, j + pattern.group)  # scored late: its weights have absorbed the errors to the left
            keep_OB[:, group] = keep_mask(_cost(weight_OB[:, group], pivot_B[group], dead_B[group]), pattern, axis=1)
        lost_O = weight_OB[:, j].masked_fill(keep_OB[:, j], 0.0)
        error_O = lost_O / pivot_B[j]
        error_OB[:, j] = error_O
        weight_OB[:, j:] -= torch.outer(error_O, factor_BB[j, j:])
    return weight_OB, keep_OB, error_OB


def _cost(weight_OB: Tensor, pivot_B: Tensor, dead_B: Tensor) -> Tensor:
    # Damping gives a dead column a pivot too, hence a cost it does not have.
    return (weight_OB / pivot_B).square().masked_fill(dead_B, 0.0)


def _without_lowest(cost_OB: Tensor, removed: int) -> Tensor:
    """Keep mask without the `removed` lowest costs of a block; among equals the lower row-major index goes."""
    keep = torch.ones(cost_OB.numel(), dtype=torch.bool, device=cost_OB.device)
    keep[cost_OB.flatten().argsort(stable=True)[:removed]] = False
    return keep.view(cost_OB.shape)


def _inverse_factor(gram_CC: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper U with UᵀU = (XᵀX + λI)⁻¹, and the damping that it took."""
    mean = float(gram_CC.diagonal().mean())
    scale = mean if mean > 0 else 1.0  # no input at all: any λ does, every weight costs the same
    while damping <= _MOST_DAMPING:
        factor_CC = _try_inverse_factor(gram_CC, damping * scale)
        if factor_CC is not None:
            return factor_CC, damping
        damping = max(damping * _ESCALATION, _LEAST_DAMPING)
    raise NumericalError(
        "gram is indefinite: no damping makes it invertible. Give XᵀX, symmetric, summed over the tokens."
    )


def _try_inverse_factor(gram_CC: Tensor, damping: float) -> Tensor | None:
    hessian_CC = gram_CC.clone()
    hessian_CC.diagonal().add_(damping)
    # H = R Rᵀ with R upper is the Cholesky factorisation from the last column to the first; then U = R⁻¹. No inverse is
    # formed, so float32 does.
    lower_CC, info = torch.linalg.cholesky_ex(hessian_CC.flip(0, 1))
    if info.item() != 0:
        return None
    pivot_C = lower_CC.diagonal()
    # The share of a column that the others do not explain must stand clear of rounding.
    if not bool((pivot_C.square() > 16 * torch.finfo(gram_CC.dtype).eps * hessian_CC.diagonal().flip(0)).all()):
        return None
    identity_CC = torch.eye(len(pivot_C), dtype=gram_CC.dtype, device=gram_CC.device)
    factor_CC: Tensor = torch.linalg.solve_triangular(lower_CC.flip(0, 1), identity_CC, upper=True)
    return factor_CC
