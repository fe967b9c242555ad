"""How much each layer gives up: OWL, outlier-weighed layer-wise sparsity (Yin et al. 2024, arXiv 2310.05175).

A layer whose scores hold more outliers keeps more. The paper maps outlier ratios linearly to sparsities inside a band
around the target (section 3.2). Here the mean, weighted by layer size, is the target, and the layer that lies farthest
from the mean touches the edge of the band.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dass.errors import InputError
from dass.method.pattern import Pattern

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MULTIPLE = 5.0
"""A score above this many times the mean is an outlier, the paper's M."""
DEFAULT_BOUND = 0.08
"""Largest distance of a layer's sparsity from the target, the paper's λ."""


def outlier_ratio(scores: "Iterable[Tensor]", multiple: float = DEFAULT_MULTIPLE) -> float:
    """Share of a layer's scores that exceed `multiple` times their mean (equation 1 of the paper, as a share).

    Args:
        scores: the scores of all pruned matrices of one layer, any shapes. The paper takes Wanda's, `abs(W)·‖x‖`.
        multiple: the paper's M.

    Raises:
        InputError: no score at all.
        ValueError: a score is NaN or infinite.
    """
    matrices = list(scores)
    count = sum(matrix.numel() for matrix in matrices)
    if count == 0:
        raise InputError("a layer has no scores: expected at least one pruned matrix.")
    mean = sum(float(matrix.double().sum()) for matrix in matrices) / count
    if not math.isfinite(mean):
        raise ValueError("importance scores contain NaN or infinity")
    return sum(int((matrix > multiple * mean).sum()) for matrix in matrices) / count


def owl_sparsities(
    outlier_ratios: Sequence[float], sizes: Sequence[int], sparsity: float, bound: float = DEFAULT_BOUND
) -> list[float]:
    """Sparsity of each layer: falls linearly with its outlier ratio, stays within `bound` of `sparsity`.

    The mean weighted by `sizes` is `sparsity`, to rounding of floating point. Equal ratios give `sparsity` everywhere.

    Args:
        outlier_ratios: of each layer, see `outlier_ratio`.
        sizes: prunable weights of each layer.
        sparsity: share of all prunable weights to remove.
        bound: the paper's λ.

    Raises:
        InputError: the counts differ, a value is out of range, or the band reaches 0 or 1.
    """
    if not outlier_ratios or len(outlier_ratios) != len(sizes):
        raise InputError(
            f"{len(outlier_ratios)} outlier ratios for {len(sizes)} layer sizes: expected one each, at least one."
        )
    if not all(math.isfinite(ratio) for ratio in outlier_ratios) or not all(size > 0 for size in sizes):
        raise InputError("outlier ratios must be finite and layer sizes positive: check the statistics.")
    if not 0.0 <= bound < min(sparsity, 1.0 - sparsity):
        raise InputError(
            f"the band {sparsity:g} ± {bound:g} leaves no layer between nothing and everything: "
            f"expected a bound from 0 to below {max(0.0, min(sparsity, 1.0 - sparsity)):g}. Choose a smaller one."
        )
    mean = math.fsum(ratio * size for ratio, size in zip(outlier_ratios, sizes, strict=True)) / sum(sizes)
    farthest = max(abs(mean - ratio) for ratio in outlier_ratios)
    # Equal ratios differ from their mean by rounding only; that is no difference to amplify.
    if farthest <= 1e-12 * max(abs(ratio) for ratio in outlier_ratios):
        return [sparsity] * len(sizes)
    return [sparsity + bound * ((mean - ratio) / farthest) for ratio in outlier_ratios]


def owl_patterns(
    outlier_ratios: Sequence[float],
    sizes: Sequence[int],
    pattern: Pattern,
    bound: float = DEFAULT_BOUND,
    steps: int | None = None,
) -> list[Pattern]:
    """The pattern of each layer: `owl_sparsities` rounded to what a group can give up, same total.

    N:M stays at the same M with another N per layer. A bound of less than 1 / (2M) rounds back to the same N everywhere
    (for 2:4 this takes a bound above 0.125, for 4:8 above 0.0625).

    Args:
        outlier_ratios: of each layer, see `outlier_ratio`.
        sizes: prunable weights of each layer.
        pattern: what a uniform allocation would use.
        bound: the paper's λ.
        steps: for unstructured, the layers' sparsities are multiples of 1 / `steps`. With a divisor of every competing
            group's size (I for DaSS; the greatest common divisor of I and H for Wanda) no layer is rounded a second
            time when its mask is made. None: not rounded. N:M rounds to 1 / M, whatever this says.

    Returns:
        One pattern a layer. Removed weights add up to `pattern.sparsity` of all exactly where the layers are of one
        size and that total is a whole number of steps; else nearly: about half a step of one layer, unless N must stay
        within 1 to M − 1.

    Raises:
        InputError: as `owl_sparsities`; `steps` is less than 2.
    """
    sparsities = owl_sparsities(outlier_ratios, sizes, pattern.sparsity, bound)
    if pattern.group is None and steps is None:
        return [Pattern(None, None, share) for share in sparsities]
    steps = pattern.group or steps
    assert steps is not None
    if steps < 2:
        raise InputError(f"steps is {steps}: expected at least 2.")
    removed = _round_to_total(
        [share * steps for share in sparsities], sizes, pattern.sparsity * steps * sum(sizes), steps
    )
    if pattern.group is None:
        return [_unstructured(count, steps) for count in removed]
    return [Pattern(steps - count, steps, count / steps) for count in removed]


def shares_within(pattern: Pattern, bound: float, steps: int) -> list[Pattern]:
    """Patterns that remove up to `bound` more or less than this one, those that remove least first.

    N:M stays at the same M with another N. Unstructured shares are five: at the edges of the band, half way, and in its
    middle, each a multiple of 1 / `steps` where there are so many.
    """
    if pattern.group is not None:
        group = pattern.group
        counts = [count for count in range(1, group) if abs(count / group - pattern.sparsity) <= bound + 1e-9]
        return [Pattern(group - count, group, count / group) for count in counts]
    shares = [pattern.sparsity + bound * part for part in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    if steps < 2:
        return [Pattern(None, None, share) for share in shares]
    rounded = sorted({min(max(round(share * steps), 1), steps - 1) for share in shares})
    return [_unstructured(count, steps) for count in rounded]


def _unstructured(removed: int, steps: int) -> Pattern:
    """The pattern that removes exactly `removed` of `steps`, also where removed / steps has no exact decimal form."""
    pattern = Pattern(None, None, removed / steps)
    if pattern.removed_from(steps) < removed:
        pattern = Pattern(None, None, math.nextafter(removed / steps, 1.0))
    return pattern


def _round_to_total(values: list[float], sizes: Sequence[int], total: float, steps: int) -> list[int]:
    """Round each value to a whole number from 1 to `steps` − 1 so that Σ size · rounded comes near `total`.

    All are rounded down; then those with the largest remainders are rounded up while that brings the sum nearer.
    """
    rounded = [min(max(math.floor(value + 1e-9), 1), steps - 1) for value in values]
    missing = total - sum(count * size for count, size in zip(rounded, sizes, strict=True))
    for layer in sorted(range(len(values)), key=lambda layer: rounded[layer] - values[layer]):
        if rounded[layer] < steps - 1 and abs(missing - sizes[layer]) < abs(missing):
            rounded[layer] += 1
            missing -= sizes[layer]
    return rounded
