"""What a version must hold to become champion, rule by rule."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.promotion.gates import Evidence, Ruling, judge
from tasks.workspace.settings import Promote


def layer(index: int, error: float | None, *, runs: bool = False) -> dict[str, Any]:
    able = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), runs)
    return {"layer": index, "relative_error": error, "runs_2_4": able}


def task(change: float, interval: tuple[float, float]) -> dict[str, Any]:
    between = {"value": change, "interval": list(interval), "level": 0.95}
    return {"metric": "acc", "difference": {"acc": between}}


UNMEASURED: dict[str, Any] = {
    "ratio": 2.0,
    "sparsity": {"mlp": 0.5},
    "divergence": None,
    "overlap": {"evaluation": {"share": None, "grams": 0}},
    "verdicts": [],
}
MEASURED: dict[str, Any] = {**UNMEASURED, "divergence": {"kl": 0.25, "top1_agreement": 0.8}}


def evidence(**changes: Any) -> Evidence:
    known: dict[str, Any] = {
        "manifest": {"layers": [layer(0, 0.2), layer(1, 0.4)]},
        "evaluation": UNMEASURED,
        "tasks": {"tasks": {"arc": task(-0.05, (-0.08, -0.02)), "wikitext": {"metric": None, "difference": {}}}},
        "git_dirty": False,
        "proof": "",
        "champion_ratio": None,
    }
    return Evidence(**{**known, **changes})


def one(rule: str, limit: Any, *, optional: tuple[str, ...] = (), **changes: Any) -> Ruling:
    found = judge(Promote(**{rule: limit, "optional_tasks": list(optional), "proof": False}), evidence(**changes))
    assert len(found) == 1
    return found[0]


def test_nothing_is_asked_where_no_rule_is_set() -> None:
    assert judge(Promote(proof=False), evidence()) == []


@pytest.mark.parametrize(
    ("rule", "holds", "fails", "told"),
    [
        ("max_ratio", 2.0, 1.9, "0.1 above"),
        ("min_sparsity", 0.5, 0.6, "0.1 below"),
        ("max_layer_error", 0.4, 0.3, "layer 1, 0.1 above"),
    ],
)
def test_a_limit_holds_when_it_is_met_and_says_by_how_much_it_failed(
    rule: str, holds: float, fails: float, told: str
) -> None:
    assert one(rule, holds).passed
    refused = one(rule, fails)
    assert (refused.passed, refused.rule, refused.limit, refused.told) == (False, rule, fails, told)


@pytest.mark.parametrize(("rule", "holds", "fails"), [("max_kl", 0.25, 0.2), ("min_top1_agreement", 0.8, 0.85)])
def test_how_far_predictions_may_move(rule: str, holds: float, fails: float) -> None:
    assert one(rule, holds, evaluation=MEASURED).passed
    refused = one(rule, fails, evaluation=MEASURED)
    assert (refused.rule, refused.passed, refused.told) == (
        rule,
        False,
        f"0.05 {'above' if rule == 'max_kl' else 'below'}",
    )
    refused = one(rule, holds, evaluation=UNMEASURED)
    assert (refused.value, refused.passed, refused.told) == (None, False, "not measured")


def test_the_text_that_overlaps_most_decides() -> None:
    overlap = {"evaluation": {"share": 0.0, "grams": 9}, "code": {"share": 1.0, "grams": 9}}
    refused = one("max_overlap", 0.1, evaluation={**MEASURED, "overlap": overlap})
    assert (refused.value, refused.passed) == (1.0, False)
    assert refused.told == "text code: 100.0% of its 13-grams are in the calibration windows"
    del overlap["code"]
    assert one("max_overlap", 0.1, evaluation={**MEASURED, "overlap": overlap}).passed
    assert not one("max_overlap", 0.1, evaluation=MEASURED).passed
    overlap["short"] = {"share": None, "grams": 0}  # type: ignore[dict-item]
    assert one("max_overlap", 0.1, evaluation={**MEASURED, "overlap": overlap}).told == "not measured of text short"


def test_a_task_whose_documents_were_calibrated_on_is_refused() -> None:
    known = {**MEASURED, "overlap": {"evaluation": {"share": 0.0, "grams": 9}}}
    tasks = {"tasks": {}, "overlap": {"arc": {"share": 0.25, "grams": 8}}}
    refused = one("max_overlap", 0.1, evaluation=known, tasks=tasks)
    assert (refused.value, refused.told) == (0.25, "task arc: 25.0% of its 13-grams are in the calibration windows")


def test_a_verdict_on_a_task_refuses_too() -> None:
    tasks = {"tasks": {}, "verdicts": [{"verdict": "incomplete", "told": "arc"}]}
    (refused,) = judge(Promote(proof=False), evidence(tasks=tasks))
    assert (refused.rule, refused.passed, refused.told) == ("incomplete", False, "arc")


@pytest.mark.parametrize("verdict", ["anomalous", "incomplete"])
def test_a_verdict_refuses_whatever_the_rules_say(verdict: str) -> None:
    found = {**MEASURED, "verdicts": [{"verdict": verdict, "told": "why"}]}
    (refused,) = judge(Promote(proof=False), evidence(evaluation=found))
    assert (refused.rule, refused.passed, refused.told) == (verdict, False, "why")


def test_a_task_may_lose_as_much_as_its_rule_allows() -> None:
    assert one("max_task_drop", {"arc": 0.06}).passed
    tasks = {"tasks": {}, "groups": {"mmlu": {**task(-0.05, (-0.08, -0.02)), "tasks": []}}}
    assert one("max_task_drop", {"mmlu": 0.06}, tasks=tasks).passed
    assert not one("max_task_drop", {"mmlu": 0.04}, tasks=tasks).passed
    refused = one("max_task_drop", {"arc": 0.04})
    assert (refused.rule, refused.passed) == ("max_task_drop.arc", False)
    assert refused.value == pytest.approx(0.05)


def test_a_verdict_on_a_task_is_no_smaller_matter_than_one_on_the_text() -> None:
    told = {"verdict": "anomalous", "told": "arc: the pruned model takes choice 0 of all 12 documents"}
    (ruling,) = judge(Promote(proof=False), evidence(tasks={"tasks": {}, "verdicts": [told]}))
    assert (ruling.rule, ruling.passed, ruling.told) == ("anomalous", False, told["told"])


def test_a_drop_that_must_be_certain_is_the_far_end_of_its_interval() -> None:
    assert one("max_task_drop", {"arc": {"drop": 0.06}}).passed
    assert one("max_task_drop", {"arc": {"drop": 0.08, "certain": True}}).passed
    refused = one("max_task_drop", {"arc": {"drop": 0.06, "certain": True}})
    assert (refused.passed, refused.limit) == (False, 0.06)
    assert refused.value == pytest.approx(0.08)
    assert refused.told == "95% certain, measured 0.05, 0.02 above"


def test_a_task_that_says_right_or_wrong_of_nothing_has_no_drop() -> None:
    refused = one("max_task_drop", {"wikitext": 0.5})
    assert (refused.passed, refused.told) == (False, "no metric of this task says right or wrong")


@pytest.mark.parametrize("drop", ["0.1", True, {"drop": 0.1, "sure": True}, {"certain": True}, None])
def test_a_drop_is_a_number_or_says_whether_it_must_be_certain(drop: Any) -> None:
    with pytest.raises(ValidationError, match="arc: expected the largest loss as a number, or {drop: NUMBER, certain"):
        Promote(max_task_drop={"arc": drop})


def test_a_task_that_was_not_evaluated_fails_unless_it_is_optional() -> None:
    refused = one("max_task_drop", {"hellaswag": 0.1})
    assert (refused.passed, refused.value, refused.told) == (False, None, "not evaluated")
    assert one("max_task_drop", {"hellaswag": 0.1}, optional=("hellaswag",)).passed


def test_an_optional_task_that_was_evaluated_still_has_to_hold() -> None:
    assert not one("max_task_drop", {"arc": 0.01}, optional=("arc",)).passed


def test_an_optional_task_without_a_rule_is_refused() -> None:
    with pytest.raises(ValidationError, match="'arc' has no rule in max_task_drop"):
        Promote(optional_tasks=["arc"])


def test_errors_that_were_not_measured_do_not_hold() -> None:
    assert not one("max_layer_error", 0.5, manifest={"layers": [layer(0, 0.2), layer(1, None)]}).passed


def test_a_kernel_must_run_every_matrix() -> None:
    assert one("kernel", "2:4", manifest={"layers": [layer(0, 0.1, runs=True)]}).passed
    refused = one("kernel", "2:4", manifest={"layers": [layer(0, 0.1, runs=True), layer(1, 0.1)]})
    assert (refused.passed, refused.value) == (False, "3 of 6 matrices")


@pytest.mark.parametrize(("champion", "passed"), [(1.9, True), (1.7, False)])
def test_the_ratio_may_be_worse_than_the_champions_by_the_margin(champion: float, passed: bool) -> None:
    ruling = one("margin", 0.1, champion_ratio=champion)
    assert ruling.passed == passed
    assert ruling.limit == pytest.approx(1.1 * champion)


def test_without_a_champion_the_margin_asks_nothing() -> None:
    assert judge(Promote(margin=0.0, proof=False), evidence()) == []


@pytest.mark.parametrize(("dirty", "passed"), [(False, True), (True, False), (None, False)])
def test_a_clean_tree_is_a_commit_and_nothing_else(dirty: bool | None, passed: bool) -> None:
    assert one("clean_git", True, git_dirty=dirty).passed == passed


@pytest.mark.parametrize(("proof", "passed"), [("", True), ("weights", False), (None, False)])
def test_a_proof_that_failed_or_was_not_made_does_not_hold(proof: str | None, passed: bool) -> None:
    ruling = judge(Promote(), evidence(proof=proof))[-1]
    assert (ruling.rule, ruling.passed) == ("proof", passed)
    assert ("weights" in ruling.told) == (proof == "weights")
