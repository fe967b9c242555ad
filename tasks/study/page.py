"""The Markdown page of one or several studies of outliers: tables with error bars, and what follows from them."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.study.cells import MAGNITUDE, PARTS, PUBLISHED, WANDA
from tasks.study.markdown import table
from tasks.study.verdict import (
    CONFIDENCE,
    Mean,
    Rows,
    Study,
    across_models,
    against_wanda,
    by_size,
    concentrated,
    main_rows,
    mean,
    measured,
    paragraph,
    where,
)

_INTRODUCTION = (
    "The paper behind DaSS says that in GLU MLPs outlier channels play a small part in the **input** of gate and up, "
    "so that Wanda's factor ‖x‖ can be left out there. This page tries that claim on {models}: how much of an "
    "activation sits in a few channels, and what happens to the whole model when only gate and up are pruned, by a "
    "score with that factor and by scores without it, or only down."
)
_HOW = (
    "KL is that of the dense model's predictions from the pruned one's, in nats a token, on {windows}; error bars are "
    "{confidence:.0f} % intervals by Student's t over seeds, each of which draws its own calibration windows. "
    "Statistics are those of the dense model (`propagation: dense`), so one pass serves every cell. Made by:"
)


def page(studies: Sequence[Study], command: str, pictures: Sequence[Sequence[str]], across: str | None = None) -> str:
    """The page of several models, smallest first.

    Args:
        studies: at least one.
        command: what makes the page again, a line or several.
        pictures: of each study, as the page refers to them.
        across: the picture of all of them.
    """
    whose = {about["model"]: some for (about, _), some in zip(studies, pictures, strict=True)}
    ordered = by_size(studies)
    abouts = [about for about, _ in ordered]
    windows = {about["model"]: f"{about['held_out_windows']} × {about['held_out_length']}" for about in abouts}
    said = set(windows.values())
    judged_on = said.pop() if len(said) == 1 else ", ".join(f"{each} ({model})" for model, each in windows.items())
    how = _HOW.format(windows=f"{judged_on} held-out tokens", confidence=100 * CONFIDENCE)
    parts = [
        "# Outliers, and which score is right",
        _wrapped(_INTRODUCTION.format(models=", ".join(windows))),
        _wrapped(how),
        f"```sh\n{command}\n```",
        "## Verdict",
    ]
    parts += [_wrapped(paragraph(about, tables)) for about, tables in ordered]
    if len(ordered) > 1:
        parts += ["### Across sizes", _wrapped(across_models(ordered))]
    if across is not None:
        parts.append(_shown(across))
    for about, tables in ordered:
        parts += _of_model(about, tables, whose[about["model"]])
    return "\n\n".join(parts) + "\n"


def _of_model(about: Mapping[str, Any], tables: Mapping[str, Rows], pictures: Sequence[str]) -> list[str]:
    seeds = about["seeds"]
    parts = [
        f"## {about['model']}",
        f"{about['parameters']:,} parameters, {about['layers']} layers, {about['dtype']} on {about['device']}. "
        f"{about['samples']} calibration windows of {about['calibration_length']} tokens; seeds "
        f"{', '.join(map(str, seeds))}. Dense loss {about['dense_loss']:.4f} nats a token.",
        "### Outlier channels",
        "Means over layers. *Beyond m ×*: share of channels whose norm is more than m times the mean norm. "
        "*Kurtosis*: mean of norm⁴ over the square of the mean of norm², 1 where all channels are alike. *Top 1 %*: "
        "the energy that the largest 1 % of channels hold.",
        _outliers_table(about, tables["outliers"]),
        "### Only a part pruned",
        _ablation_table(about, tables["ablation"]),
        "DaSS over Wanda on gate and up, seed by seed (below 1 DaSS is ahead):",
        _against_table(about, tables["ablation"]),
    ]
    if sides := _side_tables(about, tables["ablation"]):
        parts += ["### Calibration windows", *sides]
    if len(seeds) > 1:
        parts += [
            "### Mask stability",
            "Jaccard index of what two seeds' masks keep, the mean over all two of them and all matrices. Masks drawn "
            "at random with half of the weights kept come to 0.333.",
            *_stability_tables(about, tables["stability"]),
        ]
    return [*parts, "### Plots", *map(_shown, pictures)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


def _shown(picture: str) -> str:
    return f"![{Path(picture).stem}]({picture})"


def _outliers_table(about: Mapping[str, Any], rows: Rows) -> str:
    columns = {
        "beyond_5": ("beyond 5 ×", 100, "{:.2f} %"),
        "beyond_7": ("beyond 7 ×", 100, "{:.2f} %"),
        "beyond_10": ("beyond 10 ×", 100, "{:.2f} %"),
        "kurtosis": ("kurtosis", 1, "{:.1f}"),
        "top_share": ("top 1 %", 100, "{:.1f} %"),
    }
    body = []
    for source in dict.fromkeys(row["source"] for row in rows):
        for activation in ("input", "intermediate"):
            cells = []
            for column, (_, scale, form) in columns.items():
                chosen = where(rows, source=source, activation=activation)
                found = concentrated(chosen, activation, column, about) if source == "calibration" else None
                found = found or mean(row[column] for row in chosen)
                cells.append(form.format(scale * found.value))
            body.append([source, activation, *cells])
    return table(["windows", "activation", *(name for name, _, _ in columns.values())], body)


def _ablation_table(about: Mapping[str, Any], rows: Rows) -> str:
    patterns = about["patterns"]
    body = []
    for part in PARTS:
        scores = dict.fromkeys(row["score"] for row in main_rows(about, rows, patterns[0], part))
        for score in scores:
            cells = []
            for pattern in patterns:
                found = measured(main_rows(about, rows, pattern, part), score=score)
                cells.append("not measured" if found is None else f"{found:.4f}")
            body.append([part, "wanda, dass" if part == "down" and score == str(WANDA) else score, *cells])
    return table(["pruned", "score", *(f"KL, {pattern}" for pattern in patterns)], body)


def _against_table(about: Mapping[str, Any], rows: Rows) -> str:
    scores = [
        score for score in dict.fromkeys(row["score"] for row in rows) if score not in (str(WANDA), str(MAGNITUDE))
    ]
    body = []
    for score in scores:
        found = [against_wanda(about, rows, pattern, score) for pattern in about["patterns"]]
        body.append([score, *(f"{each}, {each.word}" for each in found)])
    return table(["score", *about["patterns"]], body)


def _side_tables(about: Mapping[str, Any], rows: Rows) -> list[str]:
    pattern = about["patterns"][0]
    found = []
    scores = (("gate+up", WANDA), ("gate+up", PUBLISHED), ("down", WANDA))
    head = [f"{part}, {score}" for part, score in scores]
    chosen = where(rows, pattern=pattern)
    for title, column, values, held in (
        ("windows", "samples", sorted({about["samples"], *about["sizes"]}), {"source": "calibration"}),
        ("drawn from", "source", ["calibration", *about["sources"]], {"samples": about["samples"]}),
    ):
        if len(values) < 2:
            continue
        body = []
        for value in values:
            of_value = where(chosen, **{column: value}, **held)
            cells = [measured(of_value, part=part, score=str(score)) for part, score in scores]
            body.append([str(value), *("not measured" if each is None else f"{each:.4f}" for each in cells)])
        found.append(table([title, *head], body))
    return [f"KL at {pattern}:", *found] if found else []


def _stability_tables(about: Mapping[str, Any], rows: Rows) -> list[str]:
    """By pattern at the study's number of windows; by number of windows at its first pattern."""
    patterns, samples = about["patterns"], about["samples"]
    sizes = sorted({row["samples"] for row in rows})
    scores = dict.fromkeys((row["part"], row["score"]) for row in rows)

    def cells(columns: Sequence[dict[str, Any]]) -> list[list[str]]:
        return [
            [part, score, *(_share(measured(rows, "jaccard", part=part, score=score, **each)) for each in columns)]
            for part, score in scores
        ]

    head = ["pruned", "score"]
    by_pattern = [{"pattern": pattern, "samples": samples} for pattern in patterns]
    found = [f"On {samples} windows:", table([*head, *patterns], cells(by_pattern))]
    if len(sizes) > 1:
        by_size_of_set = [{"pattern": patterns[0], "samples": size} for size in sizes]
        columns = [f"{size} windows" for size in sizes]
        found += [f"At {patterns[0]}:", table([*head, *columns], cells(by_size_of_set))]
    return found


def _share(found: Mean | None) -> str:
    return "not measured" if found is None else f"{found.value:.3f}"
