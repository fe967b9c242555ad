"""Whether an evaluation can be taken at its word: what refuses a promotion unless it is forced.

Pure, of the record alone: `dass verify` judges it again.
"""

from collections.abc import Mapping
from typing import Any

LOOPS = 0.4
"""A continuation with a smaller share of different runs of three tokens goes round in circles."""


def verdicts(evaluation: Mapping[str, Any], samples: int | None) -> list[dict[str, str]]:
    """What is wrong with the figures, {"verdict": "incomplete" | "anomalous", "told"} each.

    Args:
        evaluation: metrics/evaluation.json.
        samples: evaluate.samples: how many windows each text was to give; None: as many as it has.
    """
    found: list[dict[str, str]] = []
    for name, measured in {"evaluation": evaluation, **evaluation["texts"]}.items():
        if samples is not None and measured["windows"] < samples:
            found.append(_incomplete(f"text {name}: {measured['windows']} of {samples} windows, it has no more"))
        interval = measured["interval"]
        if interval is not None and interval["ratio"][1] < 1.0:
            found.append(
                _anomalous(
                    f"text {name}: the pruned model is better than the dense one (ratio {measured['ratio']:.4f}, "
                    f"at most {interval['ratio'][1]:.4f} with {interval['level']:.0%} confidence)"
                )
            )
    return found + _of_generations(evaluation["generations"])


def _of_generations(generations: list[dict[str, Any]]) -> list[dict[str, str]]:
    found = []
    count = len(generations)
    empty = {which: sum(not each[which].strip() for each in generations) for which in ("dense", "pruned")}
    loops = {which: sum(_loops(each["distinct3"][which]) for each in generations) for which in ("dense", "pruned")}
    for what, of in (("writes nothing", empty), ("goes round in circles", loops)):
        if 2 * of["pruned"] > count and 2 * of["dense"] <= count:
            told = f"the pruned model {what} after {of['pruned']} of {count} prompts, the dense one after {of['dense']}"
            found.append(_anomalous(told))
    return found


def _loops(distinct3: float | None) -> bool:
    return distinct3 is not None and distinct3 < LOOPS


def _anomalous(told: str) -> dict[str, str]:
    return {"verdict": "anomalous", "told": told}


def _incomplete(told: str) -> dict[str, str]:
    return {"verdict": "incomplete", "told": told}
