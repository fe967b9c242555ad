"""What a sweep goes over: settings and the values they take, read and checked before anything starts."""

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dass.errors import InputError, briefly
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Sweep, read_params, validate_settings
from tasks.workspace.small_files import parse_yaml

_NOT_OF_A_POINT = ("register", "promote", "sweep")
_RANGE = {"low", "high", "step", "log"}
_TRIED = 256  # combinations of other values in which a value is looked for


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `step` apart, or drawn on a logarithmic scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are drawn: both ends are, and the step."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step) if each is not None)

    @property
    def some(self) -> list[float]:
        """Numbers that stand for all of them: every step, or both ends and what lies between."""
        if self.step is None:
            middle = (self.low + self.high) / 2
            return [self.low, int(middle) if self.is_whole else middle, self.high]
        count = int((self.high - self.low) / self.step + 1e-9)
        return [self.low + self.step * at for at in range(min(count, _TRIED) + 1)]


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        number: its place in the sweep, from 1.
        values: what is its own: setting -> value.
        changes: the same and what all points share, as `dass run --with` takes it.
        settings: everything, checked.
    """

    number: int
    values: dict[str, Any]
    changes: tuple[str, ...]
    settings: Settings

    @property
    def told(self) -> str:
        """ "point 3 (prune.sparsity=0.5, prune.method=wanda)"."""
        return _told(self.number, self.values)


@dataclass(frozen=True)
class Space:
    """Settings that vary, and those that are the same for every point.

    Attributes:
        asked: section `sweep`.
        fixed: setting -> the value that all points have in the place of params.yaml's.
        choices: setting -> its values.
    """

    asked: Sweep
    fixed: dict[str, Any]
    choices: dict[str, list[Any] | Range]
    _params: dict[str, Any]

    @classmethod
    def read(cls, ws: Workspace, changes: Sequence[str]) -> "Space":
        """What params.yaml and `section.key=values` pairs ask for; a pair takes the place of what the file says.

        Raises:
            InputError: a pair cannot be read, a setting has no value or is none of a point's, nothing varies, or the
                settings cannot be used.
        """
        params = read_params(ws.params)
        given = dict(_pair(change) for change in changes)
        own = {key: value for key, value in given.items() if key.startswith("sweep.")}
        asked = validate_settings(_with(params, own), "sweep").sweep
        varied = {key: values for key, values in given.items() if key not in own}
        named = {**{key: _values(key, values) for key, values in asked.over.items()}, **varied}
        for key in named:
            if key.partition(".")[0] in _NOT_OF_A_POINT or "." not in key:
                raise InputError(
                    f"sweep over {key}: expected settings that a point's result depends on, such as prune.sparsity."
                )
        fixed = {key: values[0] for key, values in named.items() if isinstance(values, list) and len(values) == 1}
        choices = {key: values for key, values in named.items() if key not in fixed}
        if not choices:
            raise InputError(
                "There is nothing to sweep over: expected a setting with several values, "
                "for example -S prune.sparsity=0.3,0.5,0.7, or sweep.over in params.yaml."
            )
        return cls(asked, fixed, choices, params)

    @property
    def base(self) -> dict[str, Any]:
        """What params.yaml says of everything that a point's result depends on."""
        return {key: value for key, value in self._params.items() if key not in _NOT_OF_A_POINT}

    @property
    def first(self) -> dict[str, Any]:
        """The first value of each setting."""
        return {key: of.low if isinstance(of, Range) else of[0] for key, of in self.choices.items()}

    def check_values(self) -> None:
        """Check each value, and the ends of each range, for searches whose points are known one behind the other.

        Raises:
            InputError: a value goes with no values of the other settings.
        """
        some = {key: of.some if isinstance(of, Range) else of for key, of in self.choices.items()}
        for key, of in self.choices.items():
            others = {other: listed for other, listed in some.items() if other != key}
            for value in (of.low, of.high) if isinstance(of, Range) else of:
                self._check_value(key, value, others)

    def _check_value(self, key: str, value: Any, others: Mapping[str, Sequence[Any]]) -> None:
        reason: InputError | None = None
        for tried, combination in enumerate(itertools.product(*others.values())):
            if tried == _TRIED:
                return
            whole = {**self.fixed, key: value, **dict(zip(others, combination, strict=True))}
            try:
                validate_settings(_with(self._params, whole), f"sweep over {key}: no point can have {shown(value)}")
            except InputError as error:
                reason = reason or error
            else:
                return
        if reason is not None:
            raise reason

    def point(self, number: int, values: Mapping[str, Any]) -> Point:
        """One point, checked as a whole.

        Raises:
            InputError: these settings do not go together; the message names the point.
        """
        told = _told(number, values)
        whole = {**self.fixed, **values}
        settings = validate_settings(_with(self._params, whole), told)
        for name in ("processes", "nodes"):
            if (count := getattr(settings.engine, name)) > 1:
                raise InputError(
                    f"{told}: engine.{name} is {count}: a point is worked on by one process. "
                    "Use 1, and sweep.parallel for several points at once."
                )
        changes = tuple(f"{key}={json.dumps(value)}" for key, value in whole.items())
        return Point(number, dict(values), changes, settings)


def _told(number: int, values: Mapping[str, Any]) -> str:
    return f"point {number} ({', '.join(f'{key}={shown(value)}' for key, value in values.items())})"


def shown(value: Any) -> str:
    """A setting's value as a person would type it."""
    return value if isinstance(value, str) else json.dumps(value)


def _pair(change: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    key = key.strip()
    if not equals or "." not in key:
        raise InputError(f"-S {change}: expected section.key=values, for example -S prune.sparsity=0.3,0.5,0.7")
    origin = f"-S {change[:200]}"
    value = parse_yaml(text, origin)
    if key.startswith("sweep."):
        return key, value
    is_listed = isinstance(value, str) and "," in value and not text.strip().startswith(("'", '"'))
    if is_listed:
        pieces = [piece.strip() for piece in text.split(",")]
        if not all(pieces):
            raise InputError(f"{origin}: a value between the commas is empty. Write null where none is meant.")
        value = [parse_yaml(piece, origin) for piece in pieces]
    return key, _values(key, value if isinstance(value, list | dict) else [value])


def _values(key: str, given: Any) -> list[Any] | Range:
    """The values of a setting, each once.

    Raises:
        InputError: there is none, or they are neither a list nor a range.
    """
    if isinstance(given, dict) and {"low", "high"} <= set(given) <= _RANGE:
        return _range(key, given)
    if not isinstance(given, list):
        raise InputError(
            f"sweep over {key}: it is {briefly(given)}, expected a list of values, or a range {{low: 0.3, high: 0.7}}."
        )
    if not given:
        raise InputError(f"sweep over {key}: the list is empty. Name a value, or leave the setting out.")
    return [value for at, value in enumerate(given) if not any(_same(value, other) for other in given[:at])]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _range(key: str, given: dict[str, Any]) -> Range:
    numbers: dict[str, Any] = {name: given.get(name) for name in ("low", "high", "step")}
    for name, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if not is_number and (name != "step" or value is not None):
            raise InputError(f"sweep over {key}: {name} is {briefly(value)}, expected a number.")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"sweep over {key}: log is {briefly(log)}, expected true or false.")
    made = Range(**numbers, log=log)
    most = (made.high - made.low) * (1 + 1e-9)  # 0.7 - 0.3 is a little less than 0.4
    if not made.low < made.high or (made.step is not None and not 0 < made.step <= most):
        raise InputError(
            f"sweep over {key}: expected low below high, and a step above 0 that is no longer than the range."
        )
    if made.log and (made.low <= 0 or made.step is not None):
        raise InputError(f"sweep over {key}: log: true needs low above 0 and no step.")
    return made


def _with(params: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The raw settings with some others. What no setting is called is refused by whoever checks them."""
    changed = copy.deepcopy(params)
    for key, value in values.items():
        *parents, last = key.split(".")
        place = changed
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = value
    return changed
