"""Which points no other one beats, and the table that says so."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.sweep.records import Record
from tasks.sweep.space import Point, shown
from tasks.workspace.tables import shown as shown_figure
from tasks.workspace.tables import table

if TYPE_CHECKING:
    from rich.table import Table

Done = Sequence[tuple[Point, Record]]


def front(done: Done, objectives: Mapping[str, str]) -> list[int]:
    """Numbers of the points for which none is at least as good in every objective and better in one.

    A point that failed, or lacks a figure, is none of them.

    Args:
        done: points and what became of them.
        objectives: figure -> "min" or "max".
    """
    scored = {
        point.number: [(-1 if way == "max" else 1) * record.figures[name] for name, way in objectives.items()]
        for point, record in done
        if record.figures is not None and all(math.isfinite(record.figures.get(name, math.nan)) for name in objectives)
    }
    return [number for number, own in scored.items() if not any(_beats(other, own) for other in scored.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_table(done: Done, objectives: Mapping[str, str], width: int) -> "Table":
    """A row a point: its own values and the objectives, the front first and marked, in the order of the first one."""
    best = front(done, objectives)
    keys = list(dict.fromkeys(key for point, _ in done for key in point.values))
    names = {key: _short(key, keys) for key in keys}
    made = table(
        width,
        "point",
        *names.values(),
        *objectives,
        "best",
        title=f"{len(best)} of {len(done)} points are beaten by none",
        right={"point", *objectives},
    )
    first = next(iter(objectives))

    def order(each: tuple[Point, Record]) -> Any:
        point, record = each
        figures = record.figures or {}
        return point.number not in best, record.figures is None, figures.get(first, math.inf), point.number

    for point, record in sorted(done, key=order):
        own = [shown(point.values[key]) if key in point.values else "" for key in keys]
        figures = record.figures or {}
        found = [shown_figure(figures[name]) if name in figures else "–" for name in objectives]
        mark = "*" if point.number in best else "failed" if record.failed else ""
        made.add_row(str(point.number), *own, *found, mark)
    return made


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a setting's name, where no other setting has the same."""
    last = key.rpartition(".")[2]
    return key if sum(each.rpartition(".")[2] == last for each in keys) > 1 else last
