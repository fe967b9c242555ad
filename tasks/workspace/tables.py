"""Tables for a terminal: as narrow as what is in them, and readable at 60 columns."""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

NARROW = 72
"""Fewer columns than this, and what can be said shorter is."""
_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_DIGITS = 12


@dataclass(frozen=True)
class Fitted:
    """What rich prints as wide as the terminal is.

    Attributes:
        build: makes it for so many columns.
    """

    build: "Callable[[int], RenderableType]"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        yield self.build(options.max_width)


def table(
    width: int, *columns: str, title: str | None = None, right: Collection[str] = (), whole: Collection[str] = ()
) -> "Table":
    """An empty table: a rule below its headings, two spaces between columns, or one where there is little room.

    Args:
        width: columns of the terminal.
        columns: headings. Where all are "", there are none.
        title: above it.
        right: which columns hold numbers; they are never folded.
        whole: which others are never folded either.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(
        title=title,
        title_justify="left",
        min_width=min(width, len(title or "")),  # a title is folded to the width of its table
        box=SIMPLE_HEAD,
        show_header=any(columns),
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if width < NARROW else 1, 0, 0),
    )
    for name in columns:
        is_number = name in right
        made.add_column(name, justify="right" if is_number else "left", no_wrap=is_number or name in whole)
    return made


def shown(value: Any) -> str:
    """A setting or figure in few characters: numbers rounded, digests and lists short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        few = len(value) <= 3 and not any(isinstance(each, list | dict) for each in value)
        return f"[{', '.join(map(shown, value))}]" if few else f"{len(value)} entries"
    text = str(value)
    return text[:_DIGITS] if _DIGEST.fullmatch(text) else text


def change(before: Any, after: Any) -> str:
    """How far a number moved; "" of what is none."""
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (before, after)):
        return ""
    moved = after - before
    return f"{moved:+,}" if isinstance(moved, int) else f"{moved:+.4g}" if abs(moved) < 10_000 else f"{moved:+,.0f}"


def day(time: str | None, width: int) -> str:
    """The day of a time in ISO 8601, without its year where there is little room."""
    return (time or "").partition("T")[0][5 if width < NARROW else 0 :]
