"""`dass study sensitivity`: its tables, heat map and page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dass.files import complete_file, write_json
from dass.method.methods import PROJECTIONS
from tasks.plots import STYLE, save_figure
from tasks.study.markdown import table
from tasks.study.matrices import AskedMatrices, MatrixStudy
from tasks.study.mixes import GUESS, SENSITIVITY, allocated, as_table, compare
from tasks.study.tables import check_ours, write_study
from tasks.study.verdict import where
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

KIND, PICTURE, PAGE, ALLOCATIONS = "sensitivity", "sensitivity.png", "sensitivity.md", "allocations.json"
_WORST = 10

Rows = Sequence[Mapping[str, Any]]


def study_sensitivity(
    ws: Workspace, settings: Settings, asked: AskedMatrices, folder: Path, command: str
) -> dict[str, Any]:
    """Measure what is missing, and write the folder anew.

    Args:
        ws: a workspace in which stage `baseline` has run.
        settings: its settings; the score is that of `prune`, the windows are `calibration`'s.
        asked: what to measure.
        folder: for the results; made if missing.
        command: what the page says it was made by.

    Raises:
        InputError: as `MatrixStudy`; the folder holds something else; a total that the patterns do not reach.
        NumericalError: the model, or a pruned one, computes NaN or infinity.
    """
    check_ours(folder, KIND)
    study = MatrixStudy(ws, settings, asked)
    about, rows, statistics = study.measure()
    mixes = compare(study, rows, statistics, asked.totals)
    tables = {KIND: rows, **({"allocations": [{"model": about["model"], **row} for row in mixes]} if mixes else {})}
    write_study(folder, KIND, about, tables)
    chosen = {f"{total:g}": as_table(allocated(rows, total), about["layers"]) for total in asked.totals}
    write_json(folder / ALLOCATIONS, chosen)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        save_figure(heat_map(about, rows), folder / PICTURE)
    with complete_file(folder / PAGE) as temporary:
        temporary.write_text(page(about, rows, mixes, command), encoding="utf-8", newline="\n")
    return {
        "model": about["model"],
        "folder": str(folder.resolve()),
        "page": str(folder / PAGE),
        "pictures": [PICTURE],
        "rank_correlation": rank_correlation(rows),
        "allocations": mixes,
        "verdict": verdict(about, rows, mixes),
    }


def rank_correlation(rows: Rows) -> float | None:
    """Spearman's, of the cheap guess with the divergence; None where one of them is the same for all."""
    from scipy import stats

    guesses, found = [row["guess"] for row in rows], [row["kl"] for row in rows]
    if len(set(guesses)) < 2 or len(set(found)) < 2:
        return None
    return float(stats.spearmanr(guesses, found).statistic)


def heat_map(about: Mapping[str, Any], rows: Rows) -> Figure:
    """Divergence of the whole model by layer and projection, a panel a pattern, one logarithmic scale for all."""
    from matplotlib.colors import LogNorm

    patterns = about["patterns"]
    figure = Figure(figsize=(9, 1.4 + 1.5 * len(patterns)), layout="constrained")
    figure.suptitle(f"{about['model']}: KL of the whole model with one matrix pruned by {about['score']}")
    positive = [row["kl"] for row in rows if row["kl"] > 0.0] or [1e-12]
    norm = LogNorm(min(positive), max(max(positive), 1.001 * min(positive)))
    panels = figure.subplots(len(patterns), 1, squeeze=False, sharex=True)[:, 0]
    for axes, pattern in zip(panels, patterns, strict=True):
        found = {(row["layer"], row["projection"]): row["kl"] for row in where(rows, pattern=pattern)}
        grid = [[max(found[layer, name], min(positive)) for layer in range(about["layers"])] for name in PROJECTIONS]
        image = axes.imshow(grid, aspect="auto", norm=norm, cmap="cividis", interpolation="nearest")
        axes.set_yticks(range(len(PROJECTIONS)), PROJECTIONS)
        axes.set_title(pattern, loc="left", fontsize="medium")
        axes.grid(visible=False)
    panels[-1].set(xlabel="decoder layer")
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    figure.colorbar(image, ax=list(panels), label="KL, nats a token")
    return figure


def page(about: Mapping[str, Any], rows: Rows, mixes: Rows, command: str) -> str:
    """What was measured, as Markdown."""
    parts = [
        f"# Which matrices {about['model']} cannot spare",
        f"KL of the dense model's predictions from those of the whole model with **one** matrix of one layer pruned by "
        f"{about['score']} (layout {about['layout']}), in nats a token on {about['judged_windows']} × "
        f"{about['calibration_length']} calibration tokens. Statistics are the dense model's, on "
        f"{about['calibration_windows']} × {about['calibration_length']} others, {about['dtype']} on {about['device']}."
        " The guess is the matrix's own relative output error by the Gram matrix of its inputs. Made by:",
        f"```sh\n{command}\n```",
        "\n\n".join(verdict(about, rows, mixes)),
        f"![one matrix pruned]({PICTURE})",
        "## By projection",
        _by_projection(about, rows),
        f"## The {_WORST} worst",
        _worst(rows),
    ]
    if mixes:
        parts += [
            "## One total, allocated",
            "Every matrix takes one of the patterns or stays dense, so that the total share of MLP weights goes and "
            "the sum of the divergences measured alone is least (solved exactly). `guess` adds up the cheap guesses. "
            f"Judged on {about['held_out_windows']} × {about['held_out_length']} held-out tokens.",
            _mixes_table(mixes),
            f"The chosen pattern of every matrix is in {ALLOCATIONS}.",
        ]
    return "\n\n".join(parts) + "\n"


def verdict(about: Mapping[str, Any], rows: Rows, mixes: Rows) -> list[str]:
    """Sentences that follow from the numbers."""
    worst = max(rows, key=lambda row: row["kl"])
    middle = sorted(row["kl"] for row in rows if row["pattern"] == worst["pattern"])
    median = middle[len(middle) // 2]
    times = f", {worst['kl'] / median:.1f} times the median at that pattern" if median > 0.0 else ""
    told = [
        f"{about['model']}: the matrix it can spare least is {worst['projection']} of layer {worst['layer']} at "
        f"{worst['pattern']}, {worst['kl']:.4f} nats{times}."
    ]
    rank = rank_correlation(rows)
    of_patterns = [(pattern, rank_correlation(where(rows, pattern=pattern))) for pattern in about["patterns"]]
    inside = ", ".join(f"{value:.2f} at {pattern}" for pattern, value in of_patterns if value is not None)
    if rank is not None:
        told.append(
            f"Rank correlation of the cheap guess with the divergence: {rank:.2f}{f' ({inside})' if inside else ''}."
        )
    for total in dict.fromkeys(row["total"] for row in mixes):
        here = {row["allocation"]: row["kl"] for row in mixes if row["total"] == total}
        others = {name: value for name, value in here.items() if name not in (SENSITIVITY, GUESS)}
        best = min(others, key=lambda name: others[name])
        word = "ahead of" if here[SENSITIVITY] < others[best] else "no better than"
        told.append(
            f"With {100 * total:g} % of all MLP weights gone, allocation by sensitivity is {word} {best}: "
            f"{here[SENSITIVITY]:.4f} against {others[best]:.4f} nats."
        )
    return told


def _by_projection(about: Mapping[str, Any], rows: Rows) -> str:
    body = []
    for name in PROJECTIONS:
        cells = []
        for pattern in about["patterns"]:
            found = sorted(row["kl"] for row in where(rows, projection=name, pattern=pattern))
            cells.append(f"{found[len(found) // 2]:.5f} ({found[0]:.5f} to {found[-1]:.5f})")
        body.append([name, *cells])
    return table(["projection", *(f"KL, {pattern}: median (range)" for pattern in about["patterns"])], body)


def _worst(rows: Rows) -> str:
    ordered = sorted(rows, key=lambda row: -row["kl"])[:_WORST]
    return table(
        ["layer", "projection", "pattern", "KL", "guess"],
        [
            [str(row["layer"]), row["projection"], row["pattern"], f"{row['kl']:.5f}", f"{row['guess']:.4f}"]
            for row in ordered
        ],
    )


def _mixes_table(mixes: Rows) -> str:
    body = [
        [
            f"{100 * row['total']:g} %",
            row["allocation"],
            f"{100 * row['removed']:.2f} %",
            f"{row['kl']:.4f}",
            "not known" if row["sum_of_kl"] is None else f"{row['sum_of_kl']:.4f}",
        ]
        for row in mixes
    ]
    return table(["total", "allocation", "removed", "KL", "sum of single KLs"], body)
