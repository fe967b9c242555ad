"""What is drawn of a pruned model, as rows and figures: for the pictures and for DVC, which compares revisions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tasks.evaluation.task_record import named_entries
from tasks.workspace.redaction import source_name

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_DIGITS = 6
_PERCENTILES = {"smallest": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "largest": 1.0}


def layer_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a layer: the share of weights removed from each projection, and the relative output error of its MLPs."""
    return [
        {
            "layer": layer["layer"],
            **{projection: _short(layer["sparsity"][projection]) for projection in PROJECTIONS},
            "output_error": _short(layer["relative_error"]),
        }
        for layer in manifest["layers"]
    ]


def norm_rows(norms: list[Tensor]) -> list[dict[str, Any]]:
    """A row a layer: how the norms of its intermediate neurons are spread.

    Args:
        norms: a layer's ‖z_i‖₂ over all calibration tokens, float64 (I,), for each layer.
    """
    quantiles = norm_quantiles(norms, _PERCENTILES.values())
    return [
        {"layer": layer, **{name: _short(quantiles[share][layer]) for name, share in _PERCENTILES.items()}}
        for layer in range(len(norms))
    ]


def summary(evaluation: Mapping[str, Any], tasks: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by which two revisions are compared first, in few columns; all are in the records they come from.

    Args:
        evaluation: metrics/evaluation.json.
        tasks: metrics/tasks.json.
        manifest: of the masks.
    """
    moved = evaluation["divergence"] or {}
    errors = [layer["relative_error"] for layer in manifest["layers"]]
    figures = {
        "perplexity": evaluation["pruned"]["perplexity"],
        "dense_perplexity": evaluation["dense"]["perplexity"],
        "ratio": evaluation["ratio"],
        "kl": moved.get("kl"),
        "top1_agreement": moved.get("top1_agreement"),
        "mlp_sparsity": evaluation["sparsity"]["mlp"],
        "worst_layer_error": None if None in errors else max(errors),
    }
    of_texts = {name: text["ratio"] for name, text in evaluation["texts"].items()}
    of_tasks = {
        name: entry["pruned"][entry["metric"]] for name, entry in named_entries(tasks).items() if entry["metric"]
    }
    return {
        **{name: _short(value) for name, value in figures.items()},
        **{f"ratio_{name}": _short(value) for name, value in of_texts.items()},
        **{f"task_{name}": _short(value) for name, value in of_tasks.items()},
    }


def title(manifest: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What was pruned and how, and what it cost: two lines."""
    prune = manifest["settings"]["prune"]
    shape = f"{100 * prune['sparsity']:g} % unstructured" if prune["pattern"] == "unstructured" else prune["pattern"]
    model = source_name(manifest["base"]["uri"])
    dense, pruned = (evaluation[which]["perplexity"] for which in ("dense", "pruned"))
    return (
        f"{model}: {prune['method']}, {shape}, layout {prune['layout']}, update {prune['update']}\n"
        f"perplexity {dense:.2f} dense, {pruned:.2f} pruned: {evaluation['ratio']:.3f} times"
    )


def shared_sparsity(manifest: Mapping[str, Any]) -> float | None:
    """The share that every projection of every layer has lost, where that is one; None: they differ."""
    shares = [layer["sparsity"][projection] for layer in manifest["layers"] for projection in PROJECTIONS]
    return shares[0] if max(shares) - min(shares) < 5e-4 else None  # less than a picture could show


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
    edge = lower_edge(norms)
    return {
        share: [max(float(norm_I[round(share * (len(norm_I) - 1))]), edge) for norm_I in ordered] for share in shares
    }


def lower_edge(norms: list[Tensor]) -> float:
    """Half the smallest norm that is not 0."""
    return min((float(norm_I[norm_I > 0].min()) for norm_I in norms if norm_I.any()), default=1.0) / 2


def _short(value: float | None) -> float | None:
    """As many digits as a difference is read by."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
