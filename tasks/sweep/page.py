"""A sweep's page, in the style of a version's: the front as a chart, and every point as a row."""

from importlib.metadata import version

from tasks.report.blocks import Cell, Chart, Section, Table, number, text
from tasks.report.charts import traded
from tasks.report.page import Head, render_sections
from tasks.sweep.pareto import Done, front
from tasks.sweep.space import shown

_SIX = 6  # values of one colour each


def page(name: str, done: Done, objectives: dict[str, str]) -> str:
    """The page as HTML: one file that fetches nothing."""
    best = front(done, objectives)
    told = [f"{figure} as {'large' if way == 'max' else 'small'} as can be" for figure, way in objectives.items()]
    section = Section(
        "points",
        "Points",
        notes=[
            f"{len(done)} points, judged by {' and '.join(told)}. {len(best)} of them are beaten by none: no other "
            "point is as good in everything and better in something."
        ],
        charts=[chart] if (chart := _chart(done, objectives, best)) else [],
        tables=[_table(done, objectives, best)],
        commands=[("one of them as a version", f"dass run --from-sweep {name} POINT")],
    )
    return render_sections(Head("sweep", name), [section], f"dass sweep {version('dass')}")


def _chart(done: Done, objectives: dict[str, str], best: list[int]) -> Chart | None:
    """By the first two objectives; None: there is one only, or nothing was measured."""
    if len(objectives) < 2:
        return None
    across, axis = list(objectives)[:2]
    keys = list(dict.fromkeys(key for point, _ in done for key in point.values))
    few = [key for key in keys if 1 < len({shown(point.values.get(key)) for point, _ in done}) <= _SIX]
    colour = few[0] if few else None
    rows = [
        {
            "x": record.figures[across],
            "y": record.figures[axis],
            "point": point.told,
            "best": point.number in best,
            **({"colour": shown(point.values.get(colour))} if colour else {}),
        }
        for point, record in done
        if record.figures and across in record.figures and axis in record.figures
    ]
    if not rows:
        return None
    told = f"{len(rows)} points by {across} and {axis}; diamonds are beaten by none"
    title = f"{axis} against {across}" + (f", by {colour}" if colour else "")
    return Chart("front", title, told, traded(rows, across, axis, "colour" if colour else None), in_table=True)


def _table(done: Done, objectives: dict[str, str], best: list[int]) -> Table:
    keys = list(dict.fromkeys(key for point, _ in done for key in point.values))
    rows = []
    for point, record in done:
        figures = record.figures or {}
        mark = Cell("yes", mark="good") if point.number in best else text(record.failed or "no")
        found = [number(figures.get(name), "{:.4f}") for name in objectives]
        own = [text(shown(point.values[key])) if key in point.values else text(None) for key in keys]
        rows.append([number(point.number, "{:d}"), *own, *found, mark, text(record.fingerprint[:12], code=True)])
    return Table("All points", ["point", *keys, *objectives, "beaten by none", "fingerprint"], rows)
