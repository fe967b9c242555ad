"""What pruning cost: the headline, verdicts and rules, perplexity and tasks, divergence, and what the models write."""

from collections.abc import Iterator
from typing import Any

from tasks.evaluation.task_record import all_entries, named_entries
from tasks.promotion.gates import Ruling
from tasks.report.blocks import NONE, Cell, Chart, Section, Table, interval, number, share, text
from tasks.report.charts import along, dense_and_pruned
from tasks.report.facts import Facts


def headline(facts: Facts) -> Section:
    """One table: what it was, what it is, and how sure that is."""
    evaluation = facts.evaluation
    ratio = evaluation["interval"] or {}
    rows = [
        _perplexity_row(name, evaluation, key)
        for key, name in _PERPLEXITIES.items()
        if None not in (evaluation["dense"][key], evaluation["pruned"][key])
    ]
    rows.append([text("perplexity ratio"), NONE, NONE, number(evaluation["ratio"]), interval(ratio.get("ratio"))])
    divergence = evaluation["divergence"] or {}
    for key, name, form in _DIVERGENCES:
        if key in divergence:
            rows.append([text(name), NONE, NONE, number(divergence[key], form), NONE])
    for name, task in named_entries(facts.tasks).items():
        rows += _task_rows(name, task, only=_first_metric(task))
    for part, name in (("mlp", "zeros in the MLPs"), ("model", "zeros in the model")):
        rows.append([text(name), NONE, share(evaluation["sparsity"][part]), NONE, NONE])
    notes = [
        f"Measured on {evaluation['tokens']:,} tokens of held-out text in windows of {evaluation['context_length']}."
    ]
    if ratio:
        notes.append(
            f"The interval of the ratio holds {ratio['level']:.0%}: {ratio['method']}, {ratio['resamples']} resamples."
        )
    columns = ["figure", "dense", "pruned", "difference", _level(facts)]
    return Section("headline", "What it cost", notes, tables=[Table("Dense against pruned", columns, rows)])


_PERPLEXITIES = {
    "perplexity": "perplexity, by token",
    "word_perplexity": "perplexity, by word",
    "byte_perplexity": "perplexity, by byte",
}
_DIVERGENCES = (
    ("kl", "KL divergence, nats a token", "{:.4f}"),
    ("top1_agreement", "most likely token is the same", "{:.2%}"),
    ("top5_overlap", "of the five most likely the same", "{:.2%}"),
)


def _perplexity_row(name: str, evaluation: dict[str, Any], key: str) -> list[Cell]:
    dense, pruned = evaluation["dense"][key], evaluation["pruned"][key]
    return [text(name), number(dense), number(pruned), number(pruned - dense, "{:+.3f}"), NONE]


def _level(facts: Facts) -> str:
    level = (facts.evaluation["interval"] or {}).get("level", 0.95)
    return f"{level:.0%} interval"


VERDICTS = ("incomplete", "anomalous")
"""Rulings that no setting asks for; they have a table of their own."""


def verdicts(facts: Facts) -> Section | None:
    """Whether the figures can be trusted, and which rules of promotion hold."""
    told = [*facts.evaluation["verdicts"], *facts.tasks.get("verdicts", [])]
    tables = []
    if told:
        rows = [[Cell(str(each.get("verdict")), mark="bad"), text(each.get("told"))] for each in told]
        tables.append(Table("Verdicts against the figures", ["verdict", "why"], rows))
    rulings = [each for each in facts.rulings if each.rule not in VERDICTS]
    if rulings:
        tables.append(Table("Rules of promotion", ["rule", "limit", "value", "holds", ""], list(map(_rule, rulings))))
    overlap = facts.evaluation["overlap"]
    if overlap:
        rows = [
            [text(name), share(each.get("share")), number(each.get("grams"), "{:,}")] for name, each in overlap.items()
        ]
        columns = ["text or task", "13-grams it shares with the calibration", "13-grams"]
        tables.append(Table("Overlap with the calibration text", columns, rows))
    if not tables:
        return None
    notes = [] if told else ["No verdict stands against the figures."]
    if rulings:
        notes.append(
            "Rules as params.yaml has them now, judged on the registered figures. "
            + {
                None: "The proof was not taken yet: dass promote takes it.",
                "verified": "The proof is the ledger's last.",
                "failed": "The ledger's last proof failed.",
            }[facts.proof]
        )
    return Section("rules", "Can it be trusted, and may it be champion", notes, tables=tables)


def _rule(ruling: Ruling) -> list[Cell]:
    open_ = ruling.value is None and not ruling.passed
    holds = Cell("not judged") if open_ else Cell("yes", mark="good") if ruling.passed else Cell("no", mark="bad")
    return [text(ruling.rule), _asked(ruling.limit), _asked(ruling.value), holds, text(ruling.told or None)]


def _asked(value: Any) -> Cell:
    """A limit or what was found for it."""
    if isinstance(value, bool):
        return text("yes" if value else "no")
    return number(value, "{:.4g}")


def perplexity(facts: Facts) -> Section | None:
    """Dense against pruned, text by text."""
    evaluation = facts.evaluation
    texts: dict[str, Any] = {"evaluation": evaluation, **evaluation["texts"]}
    bars, rows = [], []
    for name, measured in texts.items():
        pair = {model: measured[model]["perplexity"] for model in ("dense", "pruned")}
        bars += [{"name": name, "model": model, "value": value} for model, value in pair.items()]
        of_text, moved = measured["interval"] or {}, measured["divergence"] or {}
        rows.append(
            [
                text(name),
                *map(number, pair.values()),
                number(measured["ratio"]),
                interval(of_text.get("ratio")),
                number(moved.get("kl"), "{:.4f}"),
                share(moved.get("top1_agreement")),
                number(measured["tokens"], "{:,}"),
            ]
        )
    title = "Perplexity of the dense and of the pruned model"
    chart = Chart("perplexity", title, _bars_told(bars), dense_and_pruned(bars, "perplexity (by token)", ".3f"), True)
    columns = ["text", "dense", "pruned", "ratio", "interval", "KL, nats a token", "same top token", "tokens"]
    return Section("perplexity", "Perplexity", charts=[chart], tables=[_without_empty("By text", columns, rows)])


def tasks(facts: Facts) -> Section | None:
    """Zero-shot accuracy, dense against pruned, on the same documents."""
    found = all_entries(facts.tasks)
    if not found:
        return None
    bars: list[dict[str, Any]] = []
    for name, task in named_entries(facts.tasks).items():
        metric = _first_metric(task)
        for model in ("dense", "pruned"):
            value, error = task[model].get(metric), task[model].get(f"{metric}_stderr")
            if type(value) in (int, float):
                ends = {"low": value - error, "high": value + error} if type(error) in (int, float) else {}
                bars.append({"name": f"{name} ({metric})", "model": model, "value": value, **ends})
    rows = [row for name, task in found.items() for row in _task_rows(name, task)]
    charts = []
    if bars:
        spec = dense_and_pruned(bars, "accuracy (share), ± standard error", ".4f")
        charts.append(
            Chart("tasks", "Zero-shot accuracy of the dense and of the pruned model", _bars_told(bars), spec, True)
        )
    notes = []
    mean = facts.tasks.get("mean") or {}
    if mean:
        means = ", ".join(f"{model} {number(mean.get(model), '{:.4f}').text}" for model in ("dense", "pruned"))
        notes.append(f"Mean over the tasks: {means}.")
    flips = [_flips(name, task) for name, task in found.items()]
    tables = [
        Table("Accuracy", ["task", "dense", "pruned", "difference", "interval"], rows),
        _without_empty(
            "The same documents",
            ["task", "version", "documents", "right to wrong", "wrong to right", "McNemar p"],
            flips,
        ),
    ]
    return Section("tasks", "Zero-shot tasks", notes, charts, tables)


def _first_metric(task: dict[str, Any]) -> str:
    chosen = task.get("metric")
    return str(chosen) if chosen else next(iter(_metrics(task)), "acc")


def _metrics(task: dict[str, Any]) -> list[str]:
    return [name for name in task["dense"] if not name.endswith("_stderr") and name in task["pruned"]]


def _task_rows(name: str, task: dict[str, Any], only: str | None = None) -> Iterator[list[Cell]]:
    for metric in _metrics(task):
        if only is not None and metric != only:
            continue
        differs = task.get("difference", {}).get(metric, {})
        yield [
            text(f"{name}, {metric}"),
            *(_with_error(task[model], metric) for model in ("dense", "pruned")),
            number(differs.get("value", _minus(task["pruned"][metric], task["dense"][metric])), "{:+.4f}"),
            interval(differs.get("interval"), "{:+.4f}"),
        ]


def _minus(a: Any, b: Any) -> Any:
    return a - b if type(a) in (int, float) and type(b) in (int, float) else None


def _with_error(measured: dict[str, Any], metric: str) -> Cell:
    value, error = number(measured[metric], "{:.4f}"), measured.get(f"{metric}_stderr")
    return Cell(f"{value.text} ± {error:.4f}", value.order) if type(error) in (int, float) else value


def _flips(name: str, task: dict[str, Any]) -> list[Cell]:
    differs = task.get("difference", {})
    of_metric: dict[str, Any] = differs.get(_first_metric(task)) or next(iter(differs.values()), {})
    return [
        text(name),
        text(task.get("version")),
        number(task.get("documents"), "{:,}"),
        number(of_metric.get("lost"), "{:,}"),
        number(of_metric.get("gained"), "{:,}"),
        number(of_metric.get("mcnemar_p"), "{:.3g}"),
    ]


def divergence(facts: Facts) -> Section | None:
    """Where the pruned model's predictions moved: along the window, and for rare and frequent tokens."""
    measured = facts.evaluation["divergence"] or {}
    charts = []
    for key, across, title in (
        ("by_position", "position in the window (tokens)", "KL divergence along the window"),
        (
            "by_frequency",
            "how often the token occurs in the text (times)",
            "KL divergence by frequency of the token",
        ),
    ):
        points = _points(measured.get(key))
        if points:
            told = f"From {points[0]['value']:.4g} to {points[-1]['value']:.4g} nats a token."
            charts.append(Chart(key, title, told, along(points, across, "KL divergence (nats a token)")))
    return Section("divergence", "How far the predictions moved", charts=charts) if charts else None


def _points(values: Any) -> list[dict[str, Any]]:
    """The bands that a divergence was measured in, by where they begin and end; or one figure a place."""
    points = []
    for at, each in enumerate(values if isinstance(values, list) else []):
        value = each.get("kl") if isinstance(each, dict) else each
        if type(value) in (int, float):
            points.append({"at": _band(each) if isinstance(each, dict) else at, "value": value})
    return points


def _band(each: dict[str, Any]) -> str:
    """From where to where, as words."""
    least, most = each.get("from"), each.get("to")
    return f"{least:,} and more" if most is None else f"{least:,}" if most == least else f"{least:,} to {most:,}"


def generations(facts: Facts) -> Section | None:
    """What both models write behind the same prompts."""
    pairs = []
    for each in facts.evaluation["generations"]:
        at, distinct = each.get("diverges_at"), each.get("distinct3") or {}
        told = "the same to the end" if at is None else f"the same up to token {at}"
        if distinct:
            shares = ", ".join(f"{name} {share(value, 0).text}" for name, value in distinct.items())
            told += f", different 3-grams: {shares}"
        pairs.append((str(each.get("prompt")), str(each.get("dense")), str(each.get("pruned")), told))
    if not pairs:
        return None
    notes = [
        "Greedy continuations of the same prompts. A low share of different 3-grams is a text that repeats itself."
    ]
    return Section("generations", "What it writes", notes, pairs=pairs)


def _without_empty(title: str, columns: list[str], rows: list[list[Cell]]) -> Table:
    """A table without the columns that say nothing."""
    told = [at for at in range(len(columns)) if any(row[at] != NONE for row in rows)]
    return Table(title, [columns[at] for at in told], [[row[at] for at in told] for row in rows])


def _bars_told(bars: list[dict[str, Any]]) -> str:
    return "; ".join(f"{each['name']}, {each['model']}: {each['value']:.4g}" for each in bars) + "."
