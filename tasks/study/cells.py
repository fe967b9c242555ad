"""The ablation behind the paper's claim, cell by cell: what is pruned, by which score, from which windows."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dass.errors import InputError
from dass.method.methods import DEFAULT_ALPHA, PROJECTIONS, Projection, Score
from dass.method.pattern import Pattern, is_number, parse_pattern
from dass.method.plan import Plan, plan
from tasks.calibration import MAIN_SET, set_names
from tasks.workspace.settings import Settings

PARTS: dict[str, tuple[Projection, ...]] = {"gate+up": ("gate_proj", "up_proj"), "down": ("down_proj",)}
"""What one cell prunes; the rest stays dense."""
PUBLISHED = Score("dass", 0.5)
WANDA, MAGNITUDE = Score("wanda"), Score("magnitude")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s?%")


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        pattern: "50%" or "2:4".
        part: of PARTS.
        score: what chooses.
        source, seed, samples: the calibration windows; None of magnitude, which needs none.
    """

    pattern: str
    part: str
    score: Score
    source: str | None
    seed: int | None
    samples: int | None

    @property
    def plan(self) -> Plan:
        """What the engine is asked for."""
        return plan_of(self.pattern, self.score, PARTS[self.part])

    def as_row(self) -> dict[str, Any]:
        """As tables have it."""
        return {**asdict(self), "score": str(self.score), "method": self.score.method, "alpha": self.score.alpha}


@dataclass(frozen=True)
class Asked:
    """What a study of outliers measures. Checked when it is made.

    Attributes:
        patterns: "50%", "2:4", "4:8"; sizes and sources are tried at the first.
        seeds: draw the calibration windows.
        samples: calibration windows.
        sizes: other numbers of windows that are tried.
        sources: other sources of windows that are tried, by their names in `tasks.calibration.set_names`.
        side_seeds: how many of the seeds sizes and sources are tried with, from the first.
        alphas: exponents of DaSS's neuron norm.
        windows: held-out windows to judge by.
    """

    patterns: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: int
    sizes: tuple[int, ...]
    sources: tuple[str, ...]
    side_seeds: int
    alphas: tuple[float, ...]
    windows: int

    def __post_init__(self) -> None:
        """Raises InputError: an empty list, something twice, or a value out of range."""
        for name, values in (("patterns", self.patterns), ("seeds", self.seeds), ("alphas", self.alphas)):
            if not values:
                raise InputError(f"--{name} is empty: expected at least one.")
        for name, listed in asdict(self).items():
            if isinstance(listed, tuple) and len(set(listed)) != len(listed):
                raise InputError(f"--{name} holds something twice: {', '.join(map(str, listed))}.")
        for pattern in self.patterns:
            plan_of(pattern, PUBLISHED, PROJECTIONS)
        for alpha in self.alphas:
            if not (is_number(alpha) and math.isfinite(alpha) and alpha >= 0.0):
                raise InputError(f"--alphas holds {alpha}: expected finite exponents of 0 or more, such as 0,0.5,1.")
        for name, counts, least in (
            ("samples", (self.samples,), 1),
            ("sizes", self.sizes, 1),
            ("side-seeds", (self.side_seeds,), 1),
            ("windows", (self.windows,), 1),
            ("seeds", self.seeds, 0),
        ):
            for count in counts:
                if not least <= count < 2**63:
                    raise InputError(f"--{name} holds {count}: expected {least} or more.")

    def as_options(self) -> list[str]:
        """As the command line is given them."""
        listed = {name: value for name, value in asdict(self).items() if value != ()}
        told = {
            name: ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
            if isinstance(value, tuple)
            else str(value)
            for name, value in listed.items()
        }
        return [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", value)]

    def check_sources(self, settings: Settings) -> None:
        """Raise InputError for a source that the settings do not name."""
        known = set_names(settings)
        for name in self.sources:
            if name not in known or name == MAIN_SET:
                others = [each for each in known if each != MAIN_SET]
                raise InputError(
                    f"--sources holds {name}: expected one of {', '.join(others)}: self, or a name under "
                    "calibration.texts."
                )

    @property
    def scores(self) -> list[Score]:
        """What gate and up are pruned by, besides magnitude; the published exponent is always among them."""
        return [WANDA, *(Score("dass", alpha) for alpha in sorted({*map(float, self.alphas), 0.5}))]

    @property
    def side(self) -> tuple[int, ...]:
        """Seeds that sizes and sources are tried with."""
        return self.seeds[: self.side_seeds]

    def sizes_of(self, source: str, seed: int) -> tuple[int, ...]:
        """How many windows of a source are looked at with a seed."""
        others = self.sizes if source == MAIN_SET and seed in self.side else ()
        return tuple(sorted({self.samples, *others}))

    @property
    def drawings(self) -> list[tuple[str, int, int]]:
        """Every (source, seed) whose windows are wanted, and how many: of one source as many for all seeds."""
        most = max(self.samples, *self.sizes) if self.sizes else self.samples
        main = [(MAIN_SET, seed, most) for seed in self.seeds]
        return main + [(source, seed, self.samples) for source in self.sources for seed in self.side]

    @property
    def cells(self) -> list[Cell]:
        """All measurements, the ablation first. In down DaSS chooses as Wanda does, so that is measured once."""
        found = [Cell(pattern, part, MAGNITUDE, None, None, None) for pattern in self.patterns for part in PARTS]
        for seed in self.seeds:
            for pattern in self.patterns:
                found += _of_windows(pattern, self.scores, MAIN_SET, seed, self.samples)
        few = [WANDA, PUBLISHED]
        for seed in self.side:
            for size in self.sizes:
                if size != self.samples:
                    found += _of_windows(self.patterns[0], few, MAIN_SET, seed, size)
            for source in self.sources:
                found += _of_windows(self.patterns[0], few, source, seed, self.samples)
        return found


def _of_windows(pattern: str, scores: Sequence[Score], source: str, seed: int, samples: int) -> list[Cell]:
    inputs = [Cell(pattern, "gate+up", score, source, seed, samples) for score in scores]
    return [*inputs, Cell(pattern, "down", WANDA, source, seed, samples)]


def pattern_of(pattern: str) -> Pattern:
    """A pattern as studies name it: "50%", or "2:4".

    Raises:
        InputError: it is none.
    """
    percent = _PERCENT.fullmatch(pattern)
    if percent:
        return parse_pattern("unstructured", float(percent[1]) / 100.0)
    if pattern == "unstructured":
        raise InputError('--patterns holds "unstructured": expected a share, for example 50%, or N:M such as 2:4.')
    return parse_pattern(pattern)


def plan_of(pattern: str, score: Score, only: Sequence[Projection]) -> Plan:
    """A plan of one pattern.

    Raises:
        InputError: it is no pattern.
    """
    shape = pattern_of(pattern)
    alpha = DEFAULT_ALPHA if score.alpha is None else score.alpha
    return plan(score.method, shape.sparsity, str(shape), alpha, propagation="dense", only=only)
