"""Whole models under one total: each matrix at the pattern that sensitivity gives it, beside uniform and OWL's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dass.engine.dense import layer_outliers
from dass.engine.variants import Moved
from dass.errors import InputError
from dass.files import read_json
from dass.method.allocation import DEFAULT_BOUND, owl_sparsities
from dass.method.methods import PROJECTIONS, Projection
from dass.method.mixed import cheapest
from tasks.study.bench import Statistics, keep
from tasks.study.cells import pattern_of
from tasks.study.matrices import MatrixStudy
from tasks.workspace.progress import progress_bar

Rows = Sequence[Mapping[str, Any]]
DENSE = "dense"
SENSITIVITY, GUESS, UNIFORM, OWL = "sensitivity", "guess", "uniform", "owl"

Matrix = tuple[int, Projection]


def allocated(rows: Rows, total: float, cost: str = "kl") -> dict[Matrix, str]:
    """For each matrix that is pruned its pattern: the least sum of `cost` with the share `total` of all weights gone.

    Args:
        rows: of a study, one for each layer, projection and pattern.
        total: share of all MLP weights.
        cost: the column that is added up; keeping a matrix dense costs nothing.

    Raises:
        InputError: the patterns do not reach the total.
    """
    options: dict[Matrix, list[Mapping[str, Any]]] = {}
    for row in rows:
        options.setdefault((row["layer"], row["projection"]), []).append(row)
    weights = sum(each[0]["weights"] for each in options.values())
    chosen = cheapest(
        [[0.0, *(row[cost] for row in each)] for each in options.values()],
        [[0.0, *(row["removed"] for row in each)] for each in options.values()],
        total * weights,
    )
    return {
        matrix: each[option - 1]["pattern"]
        for (matrix, each), option in zip(options.items(), chosen, strict=True)
        if option
    }


def evenly(rows: Rows, total: float, pattern: str, order: Sequence[float] | None = None) -> dict[Matrix, str]:
    """Whole layers at one pattern and the others dense: spread over the depth, or by an order.

    Args:
        rows: of a study.
        total: share of all MLP weights that goes, rounded up to whole matrices.
        pattern: of the matrices that are pruned.
        order: of each layer, how much it wants to be spared; None spreads the pruned ones evenly.

    Raises:
        InputError: the pattern does not reach the total.
    """
    of_pattern = [row for row in rows if row["pattern"] == pattern]
    weights = sum(row["weights"] for row in of_pattern)
    if total * weights > sum(row["removed"] for row in of_pattern) * (1 + 1e-12):
        raise InputError(f"{pattern} in every matrix removes less than the share {total:g}. Ask for less.")
    if order is None:
        ranked = sorted(range(len(of_pattern)), key=lambda place: ((place * _GOLDEN) % 1.0, place))
    else:
        ranked = sorted(range(len(of_pattern)), key=lambda place: (order[of_pattern[place]["layer"]], place))
    found: dict[Matrix, str] = {}
    gone = 0
    for place in ranked:
        if gone >= total * weights * (1 - 1e-12):
            break
        row = of_pattern[place]
        found[row["layer"], row["projection"]] = pattern
        gone += row["removed"]
    return found


_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread any number of the first ones evenly."""


def compare(study: MatrixStudy, rows: Rows, statistics: Statistics, totals: Sequence[float]) -> list[dict[str, Any]]:
    """Judge mixed allocations of equal totals: a row for each total and each way to allocate.

    Raises:
        NumericalError: one of them computes NaN or infinity.
    """
    layers = len(study.bench.decoder)
    outliers = [layer_outliers(study.bench.decoder, index, statistics(index)) for index in range(layers)]
    found: list[dict[str, Any]] = []
    with progress_bar(len(totals), "mixed allocations judged", "totals") as advance:
        for total in totals:
            choices = {
                SENSITIVITY: allocated(rows, total),
                GUESS: allocated(rows, total, "guess"),
                **_baselines(rows, total, outliers),
            }
            told = {"mixes": [sorted([*key, value] for key, value in each.items()) for each in choices.values()]}
            path = study.bench.record({**told, **study.told})
            if not path.exists():
                variants = [study.variant(statistics, choice) for choice in choices.values()]
                keep(path, [asdict(moved) for moved in study.bench.judge.judge(variants)])
            for (name, choice), moved in zip(choices.items(), read_json(path), strict=True):
                found.append({"total": total, "allocation": name, **_counted(rows, choice), **asdict(Moved(**moved))})
            advance(1)
    return found


def _baselines(rows: Rows, total: float, outliers: Sequence[float]) -> dict[str, dict[Matrix, str]]:
    """The same share of every layer, and OWL's.

    Among unstructured patterns they are what `prune.allocation` says. N:M is pruned at the strongest pattern or not at
    all: matrices spread evenly over the depth, and the layers with the fewest outliers.
    """
    if all(pattern_of(pattern).is_unstructured for pattern in {row["pattern"] for row in rows}):
        sizes = [sum(each.values()) for each in _weights(rows).values()]
        bound = min(DEFAULT_BOUND, 0.99 * min(total, 1.0 - total))
        shares = owl_sparsities(outliers, sizes, total, bound)
        each_at = {UNIFORM: [total] * len(sizes), OWL: shares}
        return {
            name: {
                (layer, projection): f"{100 * share:.6f}%"
                for layer, share in enumerate(listed)
                for projection in PROJECTIONS
            }
            for name, listed in each_at.items()
        }
    strongest = max(rows, key=lambda row: row["removed"] / row["weights"])["pattern"]
    return {
        f"{UNIFORM} {strongest}": evenly(rows, total, strongest),
        f"{OWL} {strongest}": evenly(rows, total, strongest, outliers),
    }


def _counted(rows: Rows, choice: Mapping[Matrix, str]) -> dict[str, Any]:
    """What a choice removes, and what the divergences of its matrices, each pruned alone, add up to where known."""
    taken = [row for row in rows if choice.get((row["layer"], row["projection"])) == row["pattern"]]
    weights = _weights(rows)
    removed = sum(weights[layer][name] * pattern_of(pattern).sparsity for (layer, name), pattern in choice.items())
    return {
        "removed": removed / sum(sum(each.values()) for each in weights.values()),
        "pruned_matrices": len(choice),
        "sum_of_kl": sum(row["kl"] for row in taken) if len(taken) == len(choice) else None,
    }


def _weights(rows: Rows) -> dict[int, dict[Projection, int]]:
    """By layer and projection."""
    found: dict[int, dict[Projection, int]] = {}
    for row in rows:
        found.setdefault(row["layer"], {})[row["projection"]] = row["weights"]
    return found


def as_table(choice: Mapping[Matrix, str], layers: int) -> list[dict[str, Any]]:
    """A row a layer: the pattern of each projection."""
    return [
        {"layer": layer, **{name: choice.get((layer, name), DENSE) for name in PROJECTIONS}} for layer in range(layers)
    ]
