"""How long others may keep us waiting: a deadline for every answer, and one for all the waiting of a command.

DASS_TIMEOUT is the seconds that one answer of a tracking server, a database, a package index or the hub may take. The
waits of one command together may take four times as long; what answers within a second (a tenth of DASS_TIMEOUT, when
that is shorter) is free. A transfer that goes on may take as long as it needs; one that stands still for so long has
ended.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dass.errors import InfrastructureError, InputError

VARIABLE = "DASS_TIMEOUT"
_DEFAULT = 60.0
_LONGEST = 86_400.0
_ANSWERS = 4  # a command waits for so many that never come


class Overdue(InfrastructureError):
    """Something did not answer in time."""


def answer_seconds() -> float:
    """How long one answer may take.

    Raises:
        InputError: DASS_TIMEOUT is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else _DEFAULT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:  # nan too
        raise InputError(f"{VARIABLE} is {text!r}: expected seconds, more than 0 and at most {_LONGEST:.0f}.")
    return seconds


class _Budget:
    """What is left of a command's patience. Threads share it."""

    def __init__(self) -> None:
        self._left = _ANSWERS * answer_seconds()
        self._free = min(1.0, answer_seconds() / 10)
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        return max(self._left, self._free)  # to clear up, what answers at once is still asked

    def spend(self, seconds: float) -> None:
        with self._lock:
            self._left -= max(0.0, seconds - self._free)


_budget: _Budget | None = None


@contextmanager
def patience() -> Iterator[None]:
    """All waiting inside counts together. The outermost one counts: a command's, else that of one call."""
    global _budget
    if _budget is not None:
        yield
        return
    _budget = _Budget()
    try:
        yield
    finally:
        _budget = None


def is_bounded() -> bool:
    """Whether somebody's patience is being counted now."""
    return _budget is not None


@contextmanager
def one_answer() -> Iterator[float]:
    """Around the wait for one answer: yields the seconds it may take, and counts those it took."""
    budget = _budget or _Budget()
    began = time.monotonic()
    try:
        yield min(answer_seconds(), budget.left)
    finally:
        budget.spend(time.monotonic() - began)


def overdue(seconds: float) -> Overdue:
    """What is raised when an answer did not come within `seconds`."""
    return Overdue(f"no complete answer within {seconds:.3g} s ({VARIABLE} is {answer_seconds():g})")
