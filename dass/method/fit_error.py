"""How far a re-fit is from what it aims at, on tokens it was fitted to and on tokens it was not."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class FitError:
    """‖Y − Ŷ‖² and ‖Y‖² over some tokens; errors of several MLPs add up."""

    squared: float = 0.0
    power: float = 0.0

    def __add__(self, other: Self) -> "FitError":
        return FitError(self.squared + other.squared, self.power + other.power)

    @property
    def relative(self) -> float | None:
        """‖Y − Ŷ‖ / ‖Y‖; None where there was no token, or nothing but zeros."""
        return math.sqrt(self.squared / self.power) if self.power > 0.0 else None


@dataclass(frozen=True)
class FitErrors:
    """On the tokens that were fitted, and on those held back."""

    fitted: FitError = FitError()
    held_back: FitError = FitError()

    def __add__(self, other: Self) -> "FitErrors":
        return FitErrors(self.fitted + other.fitted, self.held_back + other.held_back)
