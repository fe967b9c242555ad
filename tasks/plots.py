"""Stage `plots`: two plots of what pruning did to each layer. Equal masks give equal bytes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from safetensors.torch import load_file
from torch import Tensor

from dass.errors import InputError
from dass.files import complete_file, read_json
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

LAYERS, NORMS = "layers.png", "norms.png"

# Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = {"gate_proj": "#0072B2", "up_proj": "#56B4E9", "down_proj": "#E69F00"}
_ERROR = "#D55E00"
_BANDS = (
    (0.0, 1.0, "#D9EFE8", "all neurons"),
    (0.05, 0.95, "#A1D9C7", "5 % to 95 %"),
    (0.25, 0.75, "#58BDA0", "25 % to 75 %"),
)


def draw_plots(ws: Workspace, settings: Settings) -> None:
    """Draw plots/layers.png and plots/norms.png from artifacts/masks.

    Raises:
        InputError: there are no masks yet.
    """
    try:
        manifest = read_json(ws.masks / "manifest.json")
        statistics = load_file(ws.masks / "statistics.safetensors")
    except FileNotFoundError as error:
        raise InputError(f"No {error.filename or ws.masks}. Run: dass run, or dvc repro prune") from None
    norms = norms_by_layer(statistics)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        _save(layers_figure(manifest), ws.plots / LAYERS)
        _save(norms_figure(manifest, norms), ws.plots / NORMS)


def norms_by_layer(statistics: dict[str, Tensor]) -> list[Tensor]:
    """‖z_i‖₂ of each layer's intermediate neurons, the experts of a mixture one after the other.

    Args:
        statistics: "model.layers.3.mlp.norm_z" -> norms (I,).
    """
    found: dict[int, list[Tensor]] = {}
    for name, norm_I in statistics.items():
        if name.endswith(".norm_z") and (number := re.search(r"\.(\d+)\.", name)):
            found.setdefault(int(number[1]), []).append(norm_I)
    return [torch.cat(found[layer]) for layer in sorted(found)]


def norm_quantiles(norms: list[Tensor], shares: Iterable[float]) -> dict[float, list[float]]:
    """For each share, the norm below which that share of a layer's neurons lies, layer by layer.

    A dead neuron's norm is 0, which has no place on a logarithmic axis: it is given the axis' lower edge.
    """
    ordered = [norm_I.double().sort().values for norm_I in norms]
    edge = _lower_edge(norms)
    return {
        share: [max(float(norm_I[round(share * (len(norm_I) - 1))]), edge) for norm_I in ordered] for share in shares
    }


def _lower_edge(norms: list[Tensor]) -> float:
    """Half the smallest norm that is not 0."""
    return min((float(norm_I[norm_I > 0].min()) for norm_I in norms if norm_I.any()), default=1.0) / 2


def layers_figure(manifest: dict[str, Any]) -> Figure:
    """Sparsity of each projection and relative output error of the MLP, per layer."""
    layers = manifest["layers"]
    indices = [layer["layer"] for layer in layers]
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(f"What pruning did to each layer: {_what(manifest)}")
    width = 0.8 / len(_COLOURS)
    for place, (projection, colour) in enumerate(_COLOURS.items()):
        left = [index + (place - 1) * width for index in indices]
        above.bar(left, [layer["sparsity"][projection] for layer in layers], width, color=colour, label=projection)
    above.set(ylabel="weights removed", ylim=(0, 1))
    above.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    above.legend(ncols=len(_COLOURS), loc="lower right", bbox_to_anchor=(1.0, 1.0))
    errors = [layer["relative_error"] for layer in layers]
    if None in errors:
        below.text(0.5, 0.5, "not measured: propagation is dense", transform=below.transAxes, ha="center")
    else:
        below.plot(indices, errors, "o-", color=_ERROR, markersize=4)
    below.set(ylabel="relative output error of the MLP", ylim=(0, None))
    _number_layers(below, len(layers))
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
    axes.set(ylabel=f"‖z‖₂ of a neuron over {tokens:,} tokens", yscale="log", ylim=(_lower_edge(norms), None))
    axes.set_title(f"Norms of the {len(norms[0]):,} intermediate neurons of each layer, on the calibration windows")
    figure.legend(ncols=len(_BANDS) + 1, loc="outside lower center")
    _number_layers(axes, len(norms))
    return figure


_STYLE = {
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


def _number_layers(axes: Axes, layers: int) -> None:
    axes.set(xlabel="decoder layer", xlim=(-0.7, layers - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))


def _what(manifest: dict[str, Any]) -> str:
    prune = manifest["settings"]["prune"]
    shape = f"{100 * prune['sparsity']:g} % unstructured" if prune["pattern"] == "unstructured" else prune["pattern"]
    return f"{prune['method']}, {shape}"


def _save(figure: Figure, path: Path) -> None:
    with complete_file(path) as temporary:
        # No "Software" entry: it holds matplotlib's version, and equal plots should be equal files.
        FigureCanvasAgg(figure).print_figure(temporary, format="png", metadata={"Software": None})
