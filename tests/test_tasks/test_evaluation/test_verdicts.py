"""What refuses a promotion unless it is forced."""

from typing import Any

import pytest

from tasks.evaluation.verdicts import verdicts


def text(ratio: float = 2.0, high: float = 2.2, windows: int = 32) -> dict[str, Any]:
    return {"windows": windows, "ratio": ratio, "interval": {"ratio": [ratio - 0.1, high], "level": 0.95}}


def writes(pruned: str = " some words", distinct: float | None = 0.9, dense_distinct: float = 1.0) -> dict[str, Any]:
    distinct3 = {"dense": dense_distinct, "pruned": distinct}
    return {"prompt": "The", "dense": " other words", "pruned": pruned, "distinct3": distinct3, "diverges_at": 0}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {**text(), "texts": {}, "generations": [writes()] * 10, **changes}


def test_ordinary_figures_have_none() -> None:
    assert verdicts(evaluation(texts={"code": text(3.0, 3.1)}), 32) == []
    assert verdicts(evaluation(windows=7), None) == []
    assert verdicts(evaluation(interval=None), 32) == []


@pytest.mark.parametrize(
    ("changes", "verdict", "told"),
    [
        (text(windows=20), "incomplete", "text evaluation: 20 of 32 windows"),
        ({"texts": {"code": text(windows=3)}}, "incomplete", "text code: 3 of 32 windows"),
        (text(0.9, 0.95), "anomalous", "text evaluation: the pruned model is better than the dense one"),
        ({"texts": {"code": text(0.9, 0.99)}}, "anomalous", "text code: the pruned model is better"),
        ({"generations": [writes("  ")] * 6 + [writes()] * 4}, "anomalous", "writes nothing after 6 of 10 prompts"),
        ({"generations": [writes(distinct=0.1)] * 10}, "anomalous", "goes round in circles after 10 of 10 prompts"),
    ],
)
def test_what_cannot_be_taken_at_its_word_is_named(changes: dict[str, Any], verdict: str, told: str) -> None:
    (found,) = verdicts(evaluation(**changes), 32)
    assert found["verdict"] == verdict
    assert told in found["told"]


def test_better_within_the_interval_is_no_anomaly() -> None:
    assert verdicts(evaluation(**text(0.99, 1.01)), 32) == []


def test_what_the_dense_model_does_too_is_not_the_pruned_ones_fault() -> None:
    assert verdicts(evaluation(generations=[writes(distinct=0.1, dense_distinct=0.2)] * 10), 32) == []
