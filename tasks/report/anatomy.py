"""What pruning did to the model: layer by layer, and neuron by neuron."""

from typing import Any

from dass.engine.choice import Choice
from tasks.plot_data import norm_quantiles
from tasks.registry.result import layer_scores
from tasks.report.blocks import Chart, Section, Table, number, share, text
from tasks.report.charts import by_layer, by_layer_and_projection, density_map, spread_by_layer
from tasks.report.facts import Facts

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_BINS = 48
"""Rows of the density map: 48 for each layer keep a file of 100 layers small."""
_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def layers(facts: Facts) -> Section:
    """Sparsity and error of every layer and projection."""
    found = facts.manifest["layers"]
    removed = [
        {"layer": layer["layer"], "projection": name, "value": layer["sparsity"][name]}
        for layer in found
        for name in PROJECTIONS
        if name in layer["sparsity"]
    ]
    values = [row["value"] for row in removed]
    charts = [
        Chart(
            "sparsity",
            "Weights removed in each layer and projection",
            f"From {min(values):.1%} to {max(values):.1%}.",
            by_layer_and_projection(removed, "weights removed (%)", "%", whole=True),
        )
    ]
    errors = [
        {"layer": layer["layer"], "value": layer["relative_error"]}
        for layer in found
        if layer["relative_error"] is not None
    ]
    notes = []
    if errors:
        worst = max(errors, key=lambda each: float(each["value"]))
        charts.append(
            Chart(
                "error",
                "Relative output error of each layer's MLP",
                f"The largest is {worst['value']:.4f}, of layer {worst['layer']}.",
                by_layer(errors, "‖y − ŷ‖ / ‖y‖ (no unit)", ".2f"),
            )
        )
    else:
        notes.append("The output error was not measured: propagation is dense.")
    scores = layer_scores(facts.manifest)
    return Section("layers", "Layer by layer", notes, charts, [_layers_table(found, scores)])


def _layers_table(found: list[dict[str, Any]], scores: list[str]) -> Table:
    refined = any(layer["refined"] for layer in found)
    columns = [
        "layer",
        "pattern",
        *(["score"] if scores else []),
        "gate",
        "up",
        "down",
        *(["swaps", "squared error they left"] if refined else []),
        "output error",
        "fitted",
        "held back",
        "least ‖z‖",
        "median ‖z‖",
        "largest ‖z‖",
        "2:4 kernel runs",
    ]
    rows = []
    for layer in found:
        runs = [name.removesuffix("_proj") for name in PROJECTIONS if layer["runs_2_4"].get(name)]
        norms = [number(layer["norm"].get(name), "{:.4g}") for name in ("min", "median", "max")]
        rows.append(
            [
                number(layer["layer"], "{}"),
                text(layer["pattern"]),
                *(text(score) for score in scores[layer["layer"] : layer["layer"] + 1]),
                *(share(layer["sparsity"].get(name)) for name in PROJECTIONS),
                *(_swaps(layer["refined"]) if refined else []),
                *(number(layer[key], "{:.4f}") for key in ("relative_error", "fitted_error", "held_back_error")),
                *norms,
                text(", ".join(runs) or "none"),
            ]
        )
    return Table(f"All {len(found)} layers", columns, rows, folded=True)


def _swaps(refined: dict[str, dict[str, float]]) -> list[Any]:
    """How many weights came back by swaps, and what share of each matrix's squared error is left."""
    left = [
        f"{name.removesuffix('_proj')} {refined[name]['error_after'] / refined[name]['error_before']:.0%}"
        for name in PROJECTIONS
        if name in refined and refined[name]["error_before"]
    ]
    return [number(sum(each["swaps"] for each in refined.values()), "{:,.0f}"), text(", ".join(left) or "none")]


def choice(facts: Facts) -> Section | None:
    """What `method: auto` proposed, and how far from the dense model each proposal is."""
    if facts.manifest["auto"] is None:
        return None
    found = Choice.of(facts.manifest["auto"])
    notes = [
        f"Chosen: {found.told}.",
        f"Judged by KL(dense ‖ pruned) of the whole model on {found.windows:,} calibration windows ({found.tokens:,} "
        "tokens) that nothing was fitted to.",
    ]
    rows = [
        [
            text(each.name),
            number(each.kl, "{:.5f}"),
            number(each.kl / found.best.kl - 1.0 if found.best.kl else 0.0, "{:+.2%}"),
            *(number(each.layers.count(which), "{}") for which in range(len(found.candidates))),
        ]
        for each in found.proposals
    ]
    layers_by = [f"layers by {score}" for score in found.candidates]
    columns = ["proposal", "KL (nats a token)", "more than the chosen one", *layers_by]
    return Section("choice", "Which score for each layer", notes, tables=[Table("Proposals", columns, rows)])


def neurons(facts: Facts) -> Section:
    """Norms and densities of the intermediate neurons, and how many are left without a use."""
    tokens = facts.manifest["calibration"]["tokens"]
    quantiles = norm_quantiles(facts.norms, _SHARES)
    spread = [
        {"layer": layer, **{f"q{round(100 * share)}": values[layer] for share, values in quantiles.items()}}
        for layer in range(len(facts.norms))
    ]
    charts = []
    if spread:
        charts.append(
            Chart(
                "norms",
                "Norms of the intermediate neurons in each layer",
                "Bands: all neurons, 5 to 95 %, 25 to 75 %; the line is the median.",
                spread_by_layer(spread, f"‖z‖₂ over {tokens:,} tokens (log)"),
            )
        )
    removed, severed = (sum(getattr(each, name) for each in facts.densities) for name in ("removed", "severed"))
    total = sum(len(each.kept_I) for each in facts.densities)
    charts.append(
        Chart(
            "density",
            "What is kept of each neuron's weights",
            f"{removed:,} of {total:,} neurons are wholly removed.",
            density_map(_density_rows(facts)),
        )
    )
    notes = [
        f"Of {total:,} intermediate neurons {removed:,} are wholly dead (no weight is kept in gate, up and down), and "
        f"{severed:,} are cut off: all that gate, up or down has of them was removed.",
    ]
    if severed:
        dead = [{"layer": each.layer, "value": each.severed} for each in facts.densities]
        worst = max(facts.densities, key=lambda each: each.severed)
        charts.append(
            Chart(
                "dead",
                "Neurons cut off in each layer",
                f"Most are in layer {worst.layer}: {worst.severed:,}.",
                by_layer(dead, "neurons (count)", ",d", bars=True),
            )
        )
    rows = [
        [
            number(each.layer, "{}"),
            number(len(each.kept_I), "{:,}"),
            number(each.removed, "{:,}"),
            number(each.severed, "{:,}"),
            *(
                share(value)
                for value in (float(each.kept_I.min()), float(each.kept_I.median()), float(each.kept_I.max()))
            ),
        ]
        for each in facts.densities
    ]
    columns = ["layer", "neurons", "wholly dead", "cut off", "least kept", "median kept", "most kept"]
    return Section(
        "neurons", "Neuron by neuron", notes, charts, [Table("Neurons of each layer", columns, rows, folded=True)]
    )


def _density_rows(facts: Facts) -> list[dict[str, Any]]:
    rows = []
    for each in facts.densities:
        for begin, end, kept in each.binned(_BINS):
            rows.append({"layer": each.layer, "from": round(begin, 4), "to": round(end, 4), "kept": round(kept, 4)})
    return rows
