"""Which points there are: all at once for a grid and a random draw, a few at a time where Optuna learns from them.

Equal seeds give equal points, whatever order points are finished in: Optuna is told of them in the order of their
numbers. So a sweep that was stopped asks for the same points again, and finds those that are finished.
"""

import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dass.errors import InputError
from tasks.sweep.objectives import check_objectives, lacking
from tasks.sweep.space import Point, Range, Space, shown

if TYPE_CHECKING:
    from optuna import Study, Trial


logger = logging.getLogger("dass")


class Search(Protocol):
    """Asks for points until there are no more."""

    def batches(self) -> Iterator[list[Point]]:
        """Points that may be worked on at the same time. `tell` is called before the next."""

    def tell(self, point: Point, figures: Mapping[str, float] | None) -> None:
        """What a point came to; None: it failed."""


def search_of(space: Space) -> Search:
    """What `sweep.search` asks for, every point that is known checked.

    Raises:
        InputError: a point cannot be used, there are more than `sweep.max_points`, the search cannot go over these
            settings, or `sweep.objectives` names what is no figure.
    """
    asked = space.asked
    check_objectives(asked)
    if asked.search == "grid":
        return Listed(_numbered(space, _grid(space)))
    _check_count(space, asked.trials)
    if asked.search == "random":
        return Listed(_numbered(space, _drawn(space)))
    return Learning(space)


class Listed:
    """Points that are known from the start."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = list(points)

    def batches(self) -> Iterator[list[Point]]:
        yield self.points

    def tell(self, point: Point, figures: Mapping[str, float] | None) -> None:
        """Nothing depends on it."""


class Learning:
    """An Optuna study in memory."""

    def __init__(self, space: Space) -> None:
        """Raises InputError: a setting is neither numeric nor a choice, a value fits no point, or Optuna is missing."""
        self._space = space
        for key, values in space.choices.items():
            for value in values if isinstance(values, list) else ():
                if not isinstance(value, str | int | float | bool | None):
                    raise InputError(
                        f"sweep over {key} with search {space.asked.search}: {shown(value)} is neither a number nor a "
                        "choice. Use numbers, words, true, false or null, a range, or search: grid."
                    )
        space.check_values()
        self._study = _study(space)
        self._trials: dict[int, Trial] = {}
        self._measured: list[Mapping[str, float]] = []

    def batches(self) -> Iterator[list[Point]]:
        """Raises InputError, behind the first points: none of them has a figure that the search is to learn from."""
        asked = self._space.asked
        for start in range(0, asked.trials, asked.parallel):
            numbers = range(start + 1, min(start + asked.parallel, asked.trials) + 1)
            yield [point for number in numbers if (point := self._ask(number)) is not None]
            if (told := lacking(asked.objectives, self._measured)) is not None:
                raise InputError(f"{told} Points that were measured are kept: name another, and they are found.")

    def _ask(self, number: int) -> Point | None:
        """The next point; None: its settings do not go together, and Optuna is told so."""
        from optuna.trial import TrialState

        trial = self._study.ask()
        values = {key: _suggested(trial, key, values) for key, values in self._space.choices.items()}
        try:
            point = self._space.point(number, values)
        except InputError as error:
            logger.warning(f"{error} The search goes on without it.")
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._trials[number] = trial
        return point

    def tell(self, point: Point, figures: Mapping[str, float] | None) -> None:
        from optuna.trial import TrialState

        trial = self._trials.pop(point.number)
        self._measured += [] if figures is None else [figures]
        objectives = self._space.asked.objectives
        values = None if figures is None else [figures.get(name, math.nan) for name in objectives]
        if values is None or not all(map(math.isfinite, values)):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, values)


def _study(space: Space) -> "Study":
    try:
        import optuna
    except ImportError:
        raise InputError(
            f"sweep.search is {space.asked.search!r} and Optuna is not installed: pip install 'dass[optuna]', or use "
            "search: random."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed, objectives = space.asked.seed, space.asked.objectives
    samplers = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}
    directions = ["maximize" if way == "max" else "minimize" for way in objectives.values()]
    return optuna.create_study(sampler=samplers[space.asked.search](seed=seed), directions=directions)


def _suggested(trial: "Trial", key: str, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def _grid(space: Space) -> list[dict[str, Any]]:
    for key, values in space.choices.items():
        if isinstance(values, Range):
            raise InputError(f"sweep over {key}: a grid takes a list of values. Use search: random, tpe or nsga2.")
    lists = {key: values for key, values in space.choices.items() if isinstance(values, list)}
    _check_count(space, math.prod(map(len, lists.values())))
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def _drawn(space: Space) -> list[dict[str, Any]]:
    """So many trials at random; what is drawn twice is one point."""
    source = random.Random(space.asked.seed)
    found: list[dict[str, Any]] = []
    for _ in range(space.asked.trials):
        values = {key: _draw(source, of) for key, of in space.choices.items()}
        if values not in found:
            found.append(values)
    return found


def _draw(source: random.Random, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return source.choice(values)
    low, high = values.low, values.high
    if values.step is not None:
        return low + values.step * source.randint(0, int((high - low) / values.step + 1e-9))
    if values.log:
        drawn = math.exp(source.uniform(math.log(low), math.log(high)))
        return round(drawn) if values.is_whole else drawn
    return source.randint(int(low), int(high)) if values.is_whole else source.uniform(low, high)


def _numbered(space: Space, wanted: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [space.point(number, values) for number, values in enumerate(wanted, 1)]


def _check_count(space: Space, count: int) -> None:
    if count > space.asked.max_points:
        raise InputError(
            f"The sweep has {count} points: sweep.max_points is {space.asked.max_points}. "
            "Name fewer values, or raise it."
        )
