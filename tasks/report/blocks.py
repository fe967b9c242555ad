"""What a page is made of: sections of notes, tables and charts, and how a value is written in a cell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is read.
        order: what the column is sorted by; None: the text.
        mark: "good", "bad" or "": how it is coloured. The text says the same.
        code: whether it is set as code.
    """

    text: str
    order: float | None = None
    mark: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose columns can be sorted.

    Attributes:
        title: what it shows.
        columns: headings, units in them.
        rows: a cell a column.
        folded: whether it is closed until it is opened.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False

    @property
    def of_facts(self) -> bool:
        """Whether each row is a name and what it stands for."""
        return self.columns[0] == ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        return [
            any(row[at].order is not None for row in self.rows)
            and all(row[at].order is not None or row[at] == NONE for row in self.rows)
            for at in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: of its place on the page, a word.
        title: what it shows.
        told: the same in a sentence, for those who do not see it.
        spec: Vega-Lite's.
        in_table: whether a table under it says all of that, so that the sentence is only read out.
    """

    name: str
    title: str
    told: str
    spec: dict[str, Any]
    in_table: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor, a word.
        title: its heading.
        notes: sentences under it.
        charts, tables: in order.
        commands: what to type, a comment each.
        pairs: texts side by side: prompt, dense, pruned, and what there is to say about them.
    """

    name: str
    title: str
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    commands: Sequence[tuple[str, str]] = ()
    pairs: Sequence[tuple[str, str, str, str]] = field(default=())


NONE = Cell("–")


def text(value: Any, *, code: bool = False) -> Cell:
    """Anything as a word."""
    return NONE if value is None else Cell(str(value), code=code)


def number(value: Any, form: str = "{:.3f}") -> Cell:
    """A number in a given form; what is no number is a dash, and NaN is told as such."""
    if type(value) not in (int, float):
        return NONE if value is None else Cell(str(value))
    if not math.isfinite(value):
        return Cell("not a number" if math.isnan(value) else "infinite", mark="bad")
    return Cell(form.format(value), float(value))


def share(value: Any, digits: int = 2) -> Cell:
    """A share as a percentage."""
    return number(value, f"{{:.{digits}%}}")


def interval(value: Any, form: str = "{:.3f}") -> Cell:
    """An interval, sorted by its lower end."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(end) in (int, float) for end in value):
        return NONE
    low, high = value
    return Cell(f"{form.format(low)} to {form.format(high)}", float(low))


def digest(value: Any) -> Cell:
    """A digest, whole: it is there to be compared."""
    return NONE if value is None else Cell(str(value), code=True)
