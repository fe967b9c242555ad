"""What makes figures of tasks not to be trusted."""

from tasks.evaluation.answers import Answer
from tasks.evaluation.task_verdicts import verdicts

TARGETS = [0, 1] * 6


def chosen(*choices: int) -> list[Answer]:
    return [Answer([0.0, 0.0], choice, None, {"acc": float(choice == TARGETS[i])}) for i, choice in enumerate(choices)]


def found(asked: int = 12, counted: int = 12, low: float = -0.1, **models: list[Answer]) -> list[tuple[str, str]]:
    right = chosen(*TARGETS)
    differences = {"acc": {"value": 0.2, "interval": [low, 0.3]}}
    told = verdicts("arc", asked, counted, TARGETS, {"dense": right, "pruned": right, **models}, differences, "acc")
    return [(each["verdict"], each["told"]) for each in told]


def test_figures_of_all_documents_that_differ_no_more_than_by_chance_are_trusted() -> None:
    assert found() == []


def test_documents_that_are_missing_make_it_incomplete() -> None:
    assert found(counted=11) == [("incomplete", "arc: figures of 11 of 12 documents")]


def test_a_pruned_model_that_is_better_by_more_than_the_interval_is_anomalous() -> None:
    assert found(low=0.05) == [("anomalous", "arc: pruned is better than dense by 0.2000 acc, at least 0.0500")]


def test_one_letter_for_every_document_is_anomalous() -> None:
    told = [("anomalous", "arc: the pruned model takes choice 1 of all 12 documents")]
    assert found(pruned=chosen(*[1] * 12)) == told
