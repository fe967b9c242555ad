"""Stage `plots`: what pruning did to each layer, as two pictures and as rows, and the figures to compare runs by.

Equal masks and equal measures give equal bytes.
"""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from safetensors.torch import load_file
from torch import Tensor

from dass.errors import InputError
from dass.files import complete_file, read_json, write_json
from tasks.plot_data import (
    layer_rows,
    lower_edge,
    norm_quantiles,
    norm_rows,
    norms_by_layer,
    shared_sparsity,
    summary,
    title,
)
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

LAYERS, NORMS = "layers.png", "norms.png"

# Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = {"gate_proj": "#0072B2", "up_proj": "#56B4E9", "down_proj": "#E69F00"}
_ERROR = "#D55E00"
_ERROR_TOLD = (
    "Relative output error: ‖y − y dense‖ / ‖y dense‖ of the MLP's output y on the first calibration windows,\n"
    "pruned and dense MLP given the same inputs; 0 is as dense, 1 as wrong as no output at all."
)
_BANDS = (
    (0.0, 1.0, "#D9EFE8", "all neurons"),
    (0.05, 0.95, "#A1D9C7", "5 % to 95 %"),
    (0.25, 0.75, "#58BDA0", "25 % to 75 %"),
)


def draw_plots(ws: Workspace, settings: Settings) -> None:
    """Draw artifacts/masks into plots/layers.png and plots/norms.png.

    The rows that they are drawn from go into metrics/layers.json and metrics/norms.json, and the figures to compare
    runs by into metrics/summary.json: small files for git, so that DVC finds them in every revision.

    Raises:
        InputError: there are no masks or no measures yet.
    """
    try:
        manifest = read_json(ws.masks / "manifest.json")
        norms = norms_by_layer(load_file(ws.masks / "statistics.safetensors"))
        evaluation, tasks = (read_json(ws.metrics / f"{name}.json") for name in ("evaluation", "tasks"))
    except FileNotFoundError as error:
        stage = {"evaluation.json": "evaluate", "tasks.json": "tasks"}.get(Path(error.filename or "").name, "prune")
        raise InputError(f"No {error.filename or ws.masks}. Run: dass run, or dvc repro {stage}") from None
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        save_figure(layers_figure(manifest, evaluation), ws.plots / LAYERS)
        save_figure(norms_figure(manifest, norms), ws.plots / NORMS)
    write_json(ws.metrics / "layers.json", layer_rows(manifest))
    write_json(ws.metrics / "norms.json", norm_rows(norms))
    write_json(ws.metrics / "summary.json", summary(evaluation, tasks, manifest))


def layers_figure(manifest: dict[str, Any], evaluation: dict[str, Any]) -> Figure:
    """Sparsity of each projection, unless it is one everywhere, and relative output error of the MLP, per layer."""
    layers = manifest["layers"]
    indices = [layer["layer"] for layer in layers]
    shared = shared_sparsity(manifest)
    figure = Figure(figsize=(9, 4.8 if shared is not None else 7), layout="constrained")
    figure.suptitle(title(manifest, evaluation))
    if shared is None:
        above, below = figure.subplots(2, 1, sharex=True)
        width = 0.8 / len(_COLOURS)
        for place, (projection, colour) in enumerate(_COLOURS.items()):
            left = [index + (place - 1) * width for index in indices]
            above.bar(left, [layer["sparsity"][projection] for layer in layers], width, color=colour, label=projection)
        above.set(ylabel="weights removed", ylim=(0, 1))
        above.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        above.legend(ncols=len(_COLOURS), loc="lower right", bbox_to_anchor=(1.0, 1.0))
        told = ""
    else:
        below = figure.subplots()
        told = f"Every matrix of every layer has lost {100 * shared:.4g} % of its weights.\n"
    errors = [layer["relative_error"] for layer in layers]
    if None in errors:
        below.text(0.5, 0.5, "not measured: propagation is dense", transform=below.transAxes, ha="center")
    else:
        below.plot(indices, errors, "o-", color=_ERROR, markersize=4)
        below.set_ylim(0, 1.1 * max(errors) or None)
    below.set_title(told + _ERROR_TOLD, fontsize="small", loc="left")
    below.set_ylabel("relative output error of the MLP")
    number_layers(below, len(layers))
    return figure


def norms_figure(manifest: dict[str, Any], norms: list[Tensor]) -> Figure:
    """How the norms of the intermediate neurons are spread in each layer, on a logarithmic axis.

    Args:
        manifest: names what was pruned.
        norms: a layer's ‖z_i‖₂ over all calibration tokens, float64 (I,), for each layer.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    quantiles = norm_quantiles(norms, [share for band in _BANDS for share in band[:2]] + [0.5])
    indices = range(len(norms))
    for low, high, colour, label in _BANDS:
        axes.fill_between(indices, quantiles[low], quantiles[high], color=colour, linewidth=0, label=label)
    axes.plot(indices, quantiles[0.5], "o-", color="black", markersize=3, label="median")
    tokens = manifest["calibration"]["tokens"]
    axes.set(ylabel=f"‖z‖₂ of a neuron over {tokens:,} tokens", yscale="log", ylim=(lower_edge(norms), None))
    axes.set_title(f"Norms of the {len(norms[0]):,} intermediate neurons of each layer, on the calibration windows")
    figure.legend(ncols=len(_BANDS) + 1, loc="outside lower center")
    number_layers(axes, len(norms))
    return figure


STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": 120,
}
"""Of every picture, on top of matplotlib's own defaults."""


def number_layers(axes: Axes, layers: int) -> None:
    """Decoder layers across, from 0."""
    axes.set(xlabel="decoder layer", xlim=(-0.7, layers - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; equal figures give equal bytes."""
    with complete_file(path) as temporary:
        # No "Software" entry: it holds matplotlib's version, and equal plots should be equal files.
        FigureCanvasAgg(figure).print_figure(temporary, format="png", metadata={"Software": None})
