"""How far long work is: a bar on a terminal, otherwise a line in the log about every tenth of the way."""

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_LOG = logging.getLogger("dass")
_LINES = 10


@contextmanager
def progress_bar(total: int, description: str, unit: str = "") -> Generator[Callable[[int], None]]:
    """Yield a function to be told how much more is done; the shares add up to `total`.

    Everything goes to stderr or the log: stdout belongs to the result.
    """
    shown = _bar(total, description, unit) if sys.stderr.isatty() else _lines(total, description, unit)
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
def _bar(total: int, description: str, unit: str) -> Generator[Callable[[int], None]]:
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

    def advance(more: int) -> None:
        nonlocal done, tenth
        done += more
        reached = done * _LINES // max(total, 1)
        if reached > tenth:
            tenth = reached
            _LOG.info("%s: %d of %d%s, %.0f s", description, done, total, counted, time.monotonic() - began)

    yield advance
