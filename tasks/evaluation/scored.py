"""What lm_eval found for one task: its figures under our names, and each document's answer.

Imports nothing of lm_eval: it reads what lm_eval returned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tasks.evaluation.answers import Answer

_RIGHT_OR_WRONG = ("acc", "exact_match", "em", "acc_norm")


@dataclass(frozen=True)
class Scored:
    """One model on one task.

    Attributes:
        figures: metric -> value, and metric_stderr -> standard error, as lm_eval computed them.
        answers: one a document.
        targets: the right choice of each document, where there is a single one.
        choices: texts of each document's choices, or what is expected.
        counted: how many documents lm_eval's figures are of.
    """

    figures: dict[str, float]
    answers: list[Answer]
    targets: list[int | None]
    choices: list[list[str]]
    counted: int


def scored(results: Mapping[str, Any], name: str, chooses: bool, choices_of: Any, target_of: Any) -> Scored:
    """Read what `lm_eval.evaluate` returned for one task.

    Args:
        results: what it returned, with samples.
        name: the task's.
        chooses: whether the model chooses (by likelihood) or writes.
        choices_of: document -> texts of its choices.
        target_of: document -> the right choice.
    """
    figures = {}
    for key, value in results["results"][name].items():
        metric, comma, filter_ = key.partition(",")
        if comma and isinstance(value, Real):
            figures[_name(metric, filter_)] = float(value)
    by_document: dict[int, list[dict[str, Any]]] = {}
    for sample in results["samples"][name]:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    answers, targets, choices = [], [], []
    for samples in by_document.values():
        document = samples[0]["doc"]
        texts = choices_of(document) if chooses else [str(samples[0]["target"])]
        target = target_of(document) if chooses else None
        answers.append(_answer(samples, len(texts) if chooses else None))
        choices.append(texts)
        targets.append(target if isinstance(target, int) else texts.index(target) if target in texts else None)
    return Scored(figures, answers, targets, choices, int(results["results"][name]["sample_len"]))


def main_metric(figures: Mapping[str, float], answers: list[Answer]) -> str | None:
    """The metric that says right or wrong of each document; None where a task has none."""
    binary = [
        metric
        for metric in figures
        if all(metric in answer.scores and answer.scores[metric] in (0.0, 1.0) for answer in answers)
    ]
    known = [metric for name in _RIGHT_OR_WRONG for metric in binary if metric.partition("-")[0] == name]
    return known[0] if known else None


def _name(metric: str, filter_: str) -> str:
    """lm_eval's "acc_stderr,none" is "acc_stderr" here; what another filter took is named behind a hyphen."""
    if filter_ == "none":
        return metric
    base = metric.removesuffix("_stderr")
    return f"{base}-{filter_}{metric[len(base) :]}"


def _answer(samples: list[dict[str, Any]], choices: int | None) -> Answer:
    scores = {
        _name(metric, sample["filter"]): float(sample[metric])
        for sample in samples
        for metric in sample["metrics"]
        if isinstance(sample[metric], Real)
    }
    given = samples[0]["filtered_resps"] if choices is not None else [each[0] for each in samples[0]["resps"]]
    if choices is not None:
        likelihoods = [float(answer[0]) for answer in given[:choices]]
        return Answer(likelihoods, max(range(choices), key=likelihoods.__getitem__), None, scores)
    if isinstance(given[0], str):
        return Answer([], None, given[0], scores)
    first = given[0][0] if isinstance(given[0], list | tuple) else given[0]
    return Answer([float(first)], None, None, scores)
