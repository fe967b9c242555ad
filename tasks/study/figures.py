"""The pictures of studies of outliers, in the style of a run's own. Equal rows give equal bytes."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.plots import STYLE, number_layers, save_figure
from tasks.study.cells import MAGNITUDE, PARTS, PUBLISHED, WANDA
from tasks.study.verdict import Mean, Rows, Study, against_wanda, main_rows, mean, measured, shared_patterns, where

ACROSS = "across.png"
OUTLIERS, ABLATION, ALPHA, WINDOWS = "outliers.png", "ablation.png", "alpha.png", "windows.png"
_ACTIVATIONS = {"input": "#0072B2", "intermediate": "#E69F00"}
_SCORES = ("#999999", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
_PATTERNS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_SHIFTS = (1.0, 1.02, 0.98, 1.04, 0.96, 1.06, 0.94)
"""So that error bars of one model lie beside each other."""

_KL = "KL(dense ‖ pruned), nats a token"


def names(about: Mapping[str, Any]) -> list[str]:
    """The files that `draw` writes for a study."""
    more = [WINDOWS] if any(size != about["samples"] for size in about["sizes"]) else []
    return [OUTLIERS, ABLATION, ALPHA, *more]


def draw(folder: Path, about: Mapping[str, Any], tables: Mapping[str, Rows]) -> list[str]:
    """Draw what the tables hold; returns the files' names."""
    made = {
        OUTLIERS: lambda: outliers_figure(about, tables["outliers"]),
        ABLATION: lambda: ablation_figure(about, tables["ablation"]),
        ALPHA: lambda: alpha_figure(about, tables["ablation"]),
        WINDOWS: lambda: windows_figure(about, tables["ablation"]),
    }
    with _style():
        for name in names(about):
            save_figure(made[name](), folder / name)
    return names(about)


def draw_across(folder: Path, studies: Sequence[Study]) -> str:
    """Draw how DaSS against Wanda moves with the size of the model; returns the file's name."""
    with _style():
        save_figure(across_figure(studies), folder / ACROSS)
    return ACROSS


def _style() -> AbstractContextManager[None]:
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE})  # it is read when axes are made


def across_figure(studies: Sequence[Study]) -> Figure:
    """KL of DaSS over Wanda's on gate and up by the model's parameters, a line a pattern, error bars over seeds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [about["parameters"] for about, _ in studies]
    for pattern, colour, shift in zip(shared_patterns(studies), _PATTERNS, _SHIFTS, strict=False):
        found = [against_wanda(about, tables["ablation"], pattern) for about, tables in studies]
        ratios = [each.ratio for each in found]
        below = [0.0 if each.low is None else each.ratio - each.low for each in found]
        above = [0.0 if each.high is None else each.high - each.ratio for each in found]
        across = [size * shift for size in sizes]
        axes.errorbar(across, ratios, [below, above], color=colour, marker="o", markersize=4, capsize=3, label=pattern)
    axes.axhline(1.0, color="#999999", linestyle="--", label="Wanda")
    axes.set(xscale="log", ylim=(0, None), ylabel="KL of DaSS, α = 0.5, over Wanda's")
    axes.set_xticks(sizes, [about["model"] for about, _ in studies], rotation=20, ha="right")
    axes.minorticks_off()
    axes.set_title("only gate and up pruned; below 1 DaSS is ahead", loc="left", fontsize="medium")
    axes.legend()
    return figure


def outliers_figure(about: Mapping[str, Any], rows: Rows) -> Figure:
    """Of each layer's input and intermediate activation: what the largest channels hold, the mean over seeds."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(f"{about['model']}: outlier channels of the MLP's input and of its intermediate activation")
    panels = figure.subplots(3, 1, sharex=True)
    chosen = where(rows, source="calibration")
    for axes, (column, label, scale) in zip(
        panels,
        (
            ("top_share", "energy in the largest 1 %", "linear"),
            ("beyond_5", "channels beyond 5 × mean norm", "linear"),
            ("kurtosis", "kurtosis of the norms", "log"),
        ),
        strict=True,
    ):
        for activation, colour in _ACTIVATIONS.items():
            by_layer = [
                mean(row[column] for row in where(chosen, activation=activation, layer=layer))
                for layer in range(about["layers"])
            ]
            _line(axes, range(about["layers"]), by_layer, colour, activation)
        axes.set(ylabel=label, yscale=scale)
        if scale == "linear":
            axes.set_ylim(0, None)
    number_layers(panels[-1], about["layers"])
    panels[0].legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def ablation_figure(about: Mapping[str, Any], rows: Rows) -> Figure:
    """What each score costs, only gate and up pruned, and only down: a panel a pattern, error bars over seeds."""
    patterns = about["patterns"]
    figure = Figure(figsize=(max(7, 3.5 * len(patterns)), 5), layout="constrained")
    figure.suptitle(f"{about['model']}: only a part of each MLP pruned")
    for axes, pattern in zip(_panels(figure, len(patterns)), patterns, strict=True):
        labels: list[str] = []
        for part in PARTS:
            chosen = main_rows(about, rows, pattern, part)
            for score in dict.fromkeys(row["score"] for row in chosen):
                found = measured(chosen, score=score)
                assert found is not None
                colour = _SCORES[len(labels) % len(_SCORES)] if part == "gate+up" else "#666666"
                axes.bar(len(labels), found.value, 0.8, color=colour, yerr=found.half, capsize=3)
                labels.append(f"{part}: {score}")
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize="small")
        axes.set(title=pattern, ylim=(0, None))
        axes.set_ylabel(_KL)
    return figure


def alpha_figure(about: Mapping[str, Any], rows: Rows) -> Figure:
    """What the exponent of the neuron norm changes in gate and up, beside Wanda and magnitude."""
    patterns = about["patterns"]
    figure = Figure(figsize=(max(7, 3.5 * len(patterns)), 4), layout="constrained")
    figure.suptitle(f"{about['model']}: DaSS's exponent, only gate and up pruned")
    for number, (axes, pattern) in enumerate(zip(_panels(figure, len(patterns)), patterns, strict=True)):
        chosen = main_rows(about, rows, pattern, "gate+up")
        alphas = sorted({row["alpha"] for row in where(chosen, method="dass")})
        values = [found for alpha in alphas if (found := measured(chosen, method="dass", alpha=alpha)) is not None]
        _line(axes, alphas, values, "#0072B2", "DaSS")
        for score, colour in ((WANDA, "#E69F00"), (MAGNITUDE, "#999999")):
            level = measured(chosen, score=str(score))
            if level is not None:
                axes.axhline(level.value, color=colour, linestyle="--", label=str(score))
        axes.set(title=pattern, xlabel="α", ylim=(0, None))
        axes.set_ylabel(_KL)
        if number == 0:
            axes.legend()
    return figure


def windows_figure(about: Mapping[str, Any], rows: Rows) -> Figure:
    """What more calibration windows change, at the study's first pattern."""
    pattern = about["patterns"][0]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    chosen = where(rows, pattern=pattern, part="gate+up", source="calibration")
    for score, colour in ((WANDA, "#E69F00"), (PUBLISHED, "#0072B2")):
        of_score = where(chosen, score=str(score))
        sizes = sorted({row["samples"] for row in of_score})
        values = [mean(row["kl"] for row in where(of_score, samples=size)) for size in sizes]
        _line(axes, sizes, values, colour, str(score))
    axes.set(xscale="log", xlabel=f"calibration windows of {about['calibration_length']} tokens", ylim=(0, None))
    axes.set_ylabel(_KL)
    axes.set_title(f"{about['model']}: gate and up at {pattern}", loc="left", fontsize="medium")
    axes.legend()
    return figure


def _line(axes: Axes, across: Sequence[float], values: Sequence[Mean], colour: str, label: str) -> None:
    halves = [0.0 if each.half is None else each.half for each in values]
    axes.errorbar(
        list(across),
        [each.value for each in values],
        halves,
        color=colour,
        marker="o",
        markersize=3,
        capsize=2,
        label=label,
    )


def _panels(figure: Figure, count: int) -> list[Axes]:
    made = figure.subplots(1, count, squeeze=False)
    return list(made[0])
