"""What makes figures of tasks not to be trusted, each in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.answers import Answer

_FEWEST = 10  # documents that one letter for all of them says something of


def verdicts(
    name: str,
    asked: int,
    counted: int,
    targets: Sequence[int | None],
    models: Mapping[str, Sequence[Answer]],
    differences: Mapping[str, Mapping[str, Any]],
    metric: str | None,
) -> list[dict[str, str]]:
    """The verdicts on one task.

    Args:
        name: the task's.
        asked: documents that were asked.
        counted: documents that its figures are of.
        targets: the right choices.
        models: "dense" and "pruned" -> their answers.
        differences: metric -> pruned minus dense, with its interval.
        metric: the one that says right or wrong.
    """
    found = []
    if counted < asked:
        found.append(_verdict("incomplete", f"{name}: figures of {counted} of {asked} documents"))
    if metric is not None and differences[metric]["interval"][0] > 0:
        low, value = differences[metric]["interval"][0], differences[metric]["value"]
        found.append(
            _verdict("anomalous", f"{name}: pruned is better than dense by {value:.4f} {metric}, at least {low:.4f}")
        )
    for model, answers in models.items():
        chosen = {answer.choice for answer in answers}
        if len(answers) >= _FEWEST and len(chosen) == 1 and None not in chosen and len(set(targets)) > 1:
            told = f"{name}: the {model} model takes choice {chosen.pop()} of all {len(answers)} documents"
            found.append(_verdict("anomalous", told))
    return found


def _verdict(kind: str, told: str) -> dict[str, str]:
    return {"verdict": kind, "told": told}
