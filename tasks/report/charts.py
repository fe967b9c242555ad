"""The page's charts as Vega-Lite specifications, made and checked by altair.

Colours are Okabe and Ito's and cividis, which the colour-blind tell apart; what is text takes the page's own colour, so
that light, dark and print need no second chart.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

DENSE, PRUNED = "#0072B2", "#E69F00"
_PROJECTIONS = {"gate_proj": "#0072B2", "up_proj": "#56B4E9", "down_proj": "#E69F00"}
_ERROR = "#D55E00"
_BANDS = (("0", "100", 0.25), ("5", "95", 0.35), ("25", "75", 0.6))
_NORMS = "#009E73"
_POINTS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
_HEIGHT = 240
_NUMBERED = 12

Rows = Sequence[dict[str, Any]]


def _base(rows: Rows) -> "altair.Chart":
    import altair

    return altair.Chart(altair.Data(values=[{key: _drawable(value) for key, value in row.items()} for row in rows]))


def _drawable(value: Any) -> Any:
    """JSON has no NaN; what is none of the numbers has no mark, and a table says what it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finished(chart: "altair.Chart | altair.LayerChart | altair.FacetChart", height: int = _HEIGHT) -> dict[str, Any]:
    """As wide as its place on the page; without a background; text and lines in the page's colours."""
    styled = (
        chart.properties(width="container", height=height, background="transparent")
        .configure(autosize={"type": "fit-x", "contains": "padding"}, font="system-ui, sans-serif")
        .configure_axis(
            labelColor="currentColor",
            titleColor="currentColor",
            domainColor="#808080",
            tickColor="#808080",
            gridColor="#80808040",
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
        )
        .configure_legend(
            labelColor="currentColor",
            titleColor="currentColor",
            orient="top",
            title=None,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_view(stroke=None)
    )
    spec: dict[str, Any] = styled.to_dict()
    return spec


def dense_and_pruned(rows: Rows, axis: str, form: str) -> dict[str, Any]:
    """Bars side by side.

    Args:
        rows: {"name", "model": "dense" or "pruned", "value"}, and "low" and "high" where an interval is known.
        axis: what the value is, with its unit.
        form: how a value is written, in d3's words.
    """
    import altair

    order = list(dict.fromkeys(row["name"] for row in rows))
    colours = altair.Scale(domain=["dense", "pruned"], range=[DENSE, PRUNED])
    base = _base(rows).encode(
        y=altair.Y("name:N", sort=order, title=None, axis=altair.Axis(labelLimit=120)),
        yOffset=altair.YOffset("model:N", sort=["dense", "pruned"]),
    )
    bars = base.mark_bar().encode(
        x=altair.X("value:Q", title=axis, axis=altair.Axis(tickCount=5), scale=altair.Scale(zero=True)),
        color=altair.Color("model:N", scale=colours, sort=["dense", "pruned"]),
        tooltip=[
            altair.Tooltip("name:N"),
            altair.Tooltip("model:N"),
            altair.Tooltip("value:Q", title=axis, format=form),
        ],
    )
    height = max(90, 56 * len(order))
    if not any("low" in row for row in rows):
        return _finished(bars, height)
    ends = base.mark_rule(strokeWidth=1.5, color="currentColor").encode(x="low:Q", x2="high:Q")
    return _finished(altair.layer(bars, ends), height)


def by_layer_and_projection(rows: Rows, axis: str, form: str, *, whole: bool) -> dict[str, Any]:
    """Bars of the three projections in each layer.

    Args:
        rows: {"layer", "projection", "value"}.
        axis: what the value is, with its unit.
        form: how a value is written.
        whole: whether the axis goes from 0 to 1.
    """
    import altair

    order = list(_PROJECTIONS)
    scale = altair.Scale(domain=[0, 1]) if whole else altair.Scale(zero=True)
    bars = (
        _base(rows)
        .mark_bar()
        .encode(
            x=_layers(rows),
            xOffset=altair.XOffset("projection:N", sort=order),
            y=altair.Y("value:Q", title=axis, scale=scale, axis=altair.Axis(format=form, tickCount=5)),
            color=altair.Color(
                "projection:N", sort=order, scale=altair.Scale(domain=order, range=list(_PROJECTIONS.values()))
            ),
            tooltip=["layer:O", "projection:N", altair.Tooltip("value:Q", title=axis, format=form)],
        )
    )
    return _finished(bars)


def by_layer(rows: Rows, axis: str, form: str, *, bars: bool = False) -> dict[str, Any]:
    """One value a layer: a line with points, or bars.

    Args:
        rows: {"layer", "value"}.
        axis: what the value is, with its unit.
        form: how a value is written.
        bars: for counts.
    """
    import altair

    base = _base(rows)
    marked = base.mark_bar(color=_ERROR) if bars else base.mark_line(color=_ERROR, point={"color": _ERROR, "size": 40})
    chart = marked.encode(
        x=_layers(rows),
        y=altair.Y("value:Q", title=axis, scale=altair.Scale(zero=True), axis=altair.Axis(format=form, tickCount=5)),
        tooltip=["layer:O", altair.Tooltip("value:Q", title=axis, format=form)],
    )
    return _finished(chart)


def spread_by_layer(rows: Rows, axis: str) -> dict[str, Any]:
    """Bands of quantiles and the median in each layer, on a logarithmic axis.

    Args:
        rows: {"layer", "q0", "q5", "q25", "q50", "q75", "q95", "q100"}.
        axis: what the value is, with its unit.
    """
    import altair

    x = altair.X("layer:Q", title="decoder layer", axis=altair.Axis(tickMinStep=1, format="d"), scale=_tight(rows))
    scale = altair.Scale(type="log", nice=False)
    base = _base(rows)
    bands = [
        base.mark_area(color=_NORMS, opacity=opacity).encode(
            x=x, y=altair.Y(f"q{low}:Q", title=axis, scale=scale), y2=f"q{high}:Q"
        )
        for low, high, opacity in _BANDS
    ]
    told = [altair.Tooltip(f"q{share}:Q", title=f"{share} %", format=".4~g") for share in (0, 5, 25, 50, 75, 95, 100)]
    median = base.mark_line(color="currentColor", point={"color": "currentColor", "size": 30}).encode(
        x=x, y=altair.Y("q50:Q", title=axis, scale=scale), tooltip=["layer:O", *told]
    )
    return _finished(altair.layer(*bands, median))


def density_map(rows: Rows) -> dict[str, Any]:
    """How much is kept of each layer's neurons: layers across, neurons up, from those that keep least.

    Args:
        rows: {"layer", "from", "to": shares of the layer's neurons, "kept": mean share of their weights kept}.
    """
    import altair

    chart = (
        _base(rows)
        .mark_rect()
        .encode(
            x=_layers(rows),
            y=altair.Y(
                "from:Q",
                title="neurons of the layer, least kept first",
                axis=altair.Axis(format="%", tickCount=5, grid=False),
                scale=altair.Scale(domain=[0, 1]),
            ),
            y2="to:Q",
            color=altair.Color(
                "kept:Q",
                title="weights kept",
                scale=altair.Scale(scheme="cividis", zero=False, nice=True),
                legend=altair.Legend(format="%", title="weights kept", gradientLength=160),
            ),
            tooltip=[
                "layer:O",
                altair.Tooltip("from:Q", title="neurons from", format=".0%"),
                altair.Tooltip("to:Q", title="to", format=".0%"),
                altair.Tooltip("kept:Q", title="weights kept", format=".1%"),
            ],
        )
    )
    return _finished(chart, 300)


def along(rows: Rows, across: str, axis: str) -> dict[str, Any]:
    """A value along an ordered axis: a line with points where places are numbered, bars where they are named.

    Args:
        rows: {"at", "value"}, in order; numbers or words.
        across: what `at` is, with its unit.
        axis: what the value is, with its unit.
    """
    import altair

    y = altair.Y("value:Q", title=axis, scale=altair.Scale(zero=True), axis=altair.Axis(tickCount=5))
    told = altair.Tooltip("value:Q", title=axis, format=".4~g")
    base = _base(rows)
    if all(isinstance(row["at"], int | float) for row in rows):
        x = altair.X("at:Q", title=across, axis=altair.Axis(tickCount=8), scale=altair.Scale(nice=False, zero=False))
        line = base.mark_line(color=_ERROR, point={"color": _ERROR, "size": 30})
        return _finished(line.encode(x=x, y=y, tooltip=[altair.Tooltip("at:Q", title=across), told]), 200)
    words = altair.Axis(labelAngle=0, labelOverlap="greedy", labelSeparation=4)
    named = altair.X("at:O", title=across, sort=None, axis=words)
    bars = base.mark_bar(color=_ERROR)
    return _finished(bars.encode(x=named, y=y, tooltip=[altair.Tooltip("at:N", title=across), told]), 200)


def traded(rows: Rows, across: str, axis: str, colour: str | None) -> dict[str, Any]:
    """Points by two figures, those that none beats joined by a line.

    Args:
        rows: {"x", "y", "point", "best"}, and a column for `colour`.
        across, axis: what x and y are.
        colour: the column that points are coloured by; None: all alike.
    """
    import altair

    base = _base(rows).encode(
        x=altair.X("x:Q", title=across, scale=altair.Scale(zero=False)),
        y=altair.Y("y:Q", title=axis, scale=altair.Scale(zero=False)),
    )
    line = base.transform_filter("datum.best").mark_line(color="currentColor", strokeWidth=1, opacity=0.5)
    told = [altair.Tooltip("point:N"), altair.Tooltip("x:Q", title=across), altair.Tooltip("y:Q", title=axis)]
    dots = base.mark_point(size=70, filled=True).encode(
        color=altair.Color(f"{colour}:N", scale=altair.Scale(range=_POINTS)) if colour else altair.value(_ERROR),
        shape=altair.Shape(
            "best:N", scale=altair.Scale(domain=[True, False], range=["diamond", "circle"]), legend=None
        ),
        tooltip=told,
    )
    return _finished(altair.layer(line.encode(order="x:Q"), dots), 320)


def _layers(rows: Rows) -> "altair.X":
    """Layers as places of their own; of many only some are numbered, evenly."""
    import altair

    layers = sorted({row["layer"] for row in rows})
    numbered = layers[:: -(-len(layers) // _NUMBERED)]
    return altair.X("layer:O", title="decoder layer", axis=altair.Axis(labelAngle=0, values=numbered, grid=False))


def _tight(rows: Rows) -> "altair.Scale":
    import altair

    layers = [row["layer"] for row in rows]
    return altair.Scale(domain=[min(layers), max(layers)], nice=False)
