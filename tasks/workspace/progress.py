"""How far long work is, and how long the rest takes: a bar on a terminal, otherwise a line in the log about every tenth
of the way."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from tasks.workspace.log_format import is_json

T = TypeVar("T")

_LOG = logging.getLogger("dass")
TERMINAL = "terminal"
"""Name of the handler that writes the log to standard error."""
_LINES = 10
_LOOK, _PATIENCE, _SELDOM = 0.5, 2.0, 60.0


@contextmanager
def progress_bar(total: int, description: str, unit: str = "") -> Generator[Callable[[int], None]]:
    """Yield a function to be told how much more is done; the shares add up to `total`.

    Everything goes to stderr or the log: stdout belongs to the result.
    """
    shown = _bar(total, description, unit) if _moves() else _lines(total, description, unit)
    with shown as advance:
        yield advance


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Generator[T]:
    """Pass on `items` one by one and show how many are done.

    Args:
        items: what is worked on.
        description: what is being done, for example "fetching".
        total: how many items there are, where `len` cannot tell.
        unit: what is counted, in the plural.
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("items have no length: pass total")
        total = len(items)
    with progress_bar(total, description, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def working(description: str, amount: Callable[[], str] = str) -> Generator[None]:
    """Show that something is being done of which nobody knows how long it takes.

    Args:
        description: what, for example "Starting Prefect".
        amount: how far it is, in words, such as "12 MB"; asked now and then, from another thread.
    """
    with _spinner(description, amount) if _moves() else _now_and_then(description, amount):
        yield


class TimeLeft:
    """How long the rest of some work takes, going by what was done since it was first asked: what was done before that
    may be an earlier run's.

    Args:
        total: what there is to do.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._began: tuple[int, float] | None = None

    def told(self, done: int) -> str | None:
        """Words such as "about 3 min left"; None: there is nothing to go by yet, or nothing left."""
        if self._began is None:
            self._began = done, time.monotonic()
        first, began = self._began
        if not first < done < self._total:
            return None
        return f"about {duration((time.monotonic() - began) / (done - first) * (self._total - done))} left"


def duration(seconds: float) -> str:
    """A length of time that is known about: 0.4 s, 12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0.1):.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _moves() -> bool:
    """Whether there is a terminal on which something may move: one that knows how, and nobody asked for quiet."""
    quiet = any(handler.name == TERMINAL and handler.level > logging.INFO for handler in _LOG.handlers)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("dumb", "unknown")
    return sys.stderr.isatty() and not quiet and not plain and not is_json()


@contextmanager
def _spinner(description: str, amount: Callable[[], str]) -> Generator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        with _meanwhile(lambda: bar.update(task, description=f"{description} {amount()}".rstrip()), _LOOK, _LOOK):
            yield


@contextmanager
def _now_and_then(description: str, amount: Callable[[], str]) -> Generator[None]:
    began = time.monotonic()

    def tell() -> None:
        far = amount()
        _LOG.info("%s: %s%.0f s", description, f"{far}, " if far else "", time.monotonic() - began)

    with _meanwhile(tell, _PATIENCE, _SELDOM):
        yield


@contextmanager
def _meanwhile(tell: Callable[[], None], first: float, longest: float) -> Generator[None]:
    """Call something in a thread of its own while the work goes on: after `first` seconds, then ever more seldom."""
    done = threading.Event()

    def repeat() -> None:
        wait = first
        while not done.wait(wait):
            tell()
            wait = min(4 * wait, longest)

    # In this thread's context, which says what its records are about.
    thread = threading.Thread(target=copy_context().run, args=(repeat,), daemon=True, name="dass-progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _bar(total: int, description: str, unit: str) -> Generator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, advance=done)


@contextmanager
def _lines(total: int, description: str, unit: str) -> Generator[Callable[[int], None]]:
    began, done, tenth = time.monotonic(), 0, 0
    counted = f" {unit}" if unit else ""
    time_left = TimeLeft(total)

    def advance(more: int) -> None:
        nonlocal done, tenth
        done += more
        left = time_left.told(done)
        reached = done * _LINES // max(total, 1)
        if reached > tenth:
            tenth = reached
            took = f"{time.monotonic() - began:.0f} s"
            _LOG.info("%s: %d of %d%s, %s", description, done, total, counted, ", ".join(filter(None, (took, left))))

    yield advance
