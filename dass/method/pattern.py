"""Sparsity patterns: "unstructured", or "N:M" which means *keep* N of every M consecutive weights.

Code in Wanda's lineage counts the removed weights instead; 2:4 hides the difference, 1:4 does not.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from dass.errors import InputError, briefly

_N_M = re.compile(r"(\d+):(\d+)")
EXAMPLES = '"unstructured", or N:M with 0 < N < M such as "2:4" (keep 2 of every 4)'


@dataclass(frozen=True)
class Pattern:
    """How many weights of a competing group are kept.

    Attributes:
        keep: N of N:M, or None for unstructured sparsity.
        group: M of N:M, or None for unstructured sparsity.
        sparsity: share of weights removed from each competing group, 0 < sparsity < 1.
    """

    keep: int | None
    group: int | None
    sparsity: float

    @property
    def is_unstructured(self) -> bool:
        return self.group is None

    def removed_from(self, size: int) -> int:
        """How many of `size` competing weights go: ⌊sparsity · size⌋ in exact decimal arithmetic.

        Exact, because ⌊0.29 · 100⌋ is 28 in floating point.
        """
        return int(Fraction(str(self.sparsity)) * size)

    def __str__(self) -> str:
        return "unstructured" if self.group is None else f"{self.keep}:{self.group}"


def is_number(value: object) -> bool:
    """Whether a value can be compared and computed with as a real number (NaN can)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_pattern(pattern: str, sparsity: float | None = None) -> Pattern:
    """Read a pattern and the sparsity that goes with it.

    Args:
        pattern: "unstructured" or "N:M" (keep N of M consecutive weights).
        sparsity: share of weights to remove. None means what the pattern implies: 0.5 for
            "unstructured", (M − N) / M for "N:M".

    Raises:
        InputError: the pattern cannot be read, keeps nothing or everything, or disagrees with `sparsity`.
    """
    if sparsity is not None and not (is_number(sparsity) and 0.0 < sparsity < 1.0):  # also refuses NaN
        raise InputError(
            f"sparsity is {briefly(sparsity)}: expected a share between 0 and 1, both excluded, for example 0.5."
        )
    if pattern == "unstructured":
        return Pattern(None, None, 0.5 if sparsity is None else sparsity)
    match = _N_M.fullmatch(pattern) if isinstance(pattern, str) else None
    if match is None:
        raise InputError(f"pattern is {briefly(pattern)}: expected {EXAMPLES}.")
    keep, group = int(match[1]), int(match[2])
    if not 0 < keep < group:
        raise InputError(
            f"pattern is {pattern!r}: keeping {keep} of {group} removes nothing or everything. Expected {EXAMPLES}."
        )
    implied = (group - keep) / group
    if sparsity is not None and abs(sparsity - implied) > 1e-9:
        raise InputError(
            f"sparsity is {sparsity} but pattern {pattern!r} removes exactly {implied:g}. "
            f'Set sparsity to {implied:g}, or use pattern "unstructured".'
        )
    return Pattern(keep, group, implied)
