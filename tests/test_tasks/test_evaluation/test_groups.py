"""A group's figures: lm_eval's mean over its tasks, and a difference paired over all of its documents."""

import pytest

from tasks.evaluation.answers import Answer
from tasks.evaluation.groups import group_entries
from tasks.evaluation.scored import Scored
from tasks.evaluation.task_record import all_entries, named_entries
from tasks.sources.task_definitions import TaskGroup


def scored(*right: float) -> Scored:
    share = sum(right) / len(right)
    answers = [Answer([0.0, 0.0], 0, None, {"acc": each}) for each in right]
    choices = [["a", "b"]] * len(right)
    return Scored({"acc": share, "acc_stderr": 0.1}, answers, [0] * len(right), choices, len(right))


DENSE = {"small": scored(1.0, 1.0), "large": scored(1.0, 0.0, 0.0, 0.0)}
PRUNED = {"small": scored(0.0, 1.0), "large": scored(0.0, 0.0, 0.0, 1.0)}


def test_a_weighted_group_is_the_mean_over_all_documents_with_every_flip() -> None:
    group = TaskGroup(["small", "large"], {"acc": True})
    entry = group_entries({"both": group}, DENSE, PRUNED, seed=0)["both"]
    assert (entry["documents"], entry["tasks"], entry["metric"]) == (6, ["small", "large"], "acc")
    assert entry["dense"]["acc"] == pytest.approx(3 / 6)
    assert entry["pruned"]["acc"] == pytest.approx(2 / 6)
    # lm_eval pools variances: (n - 1) n se², summed, over (N - tasks), over N.
    assert entry["dense"]["acc_stderr"] == pytest.approx((((1 * 2 + 3 * 4) * 0.01) / 4 / 6) ** 0.5)
    between = entry["difference"]["acc"]
    assert between["value"] == pytest.approx(-1 / 6)
    assert (between["lost"], between["gained"]) == (2, 1)
    assert between["mcnemar_p"] == pytest.approx(1.0)


def test_an_unweighted_group_is_the_mean_of_its_tasks_means() -> None:
    group = TaskGroup(["small", "large"], {"acc": False})
    entry = group_entries({"both": group}, DENSE, PRUNED, seed=0)["both"]
    assert entry["dense"]["acc"] == pytest.approx((1.0 + 0.25) / 2)
    assert entry["pruned"]["acc"] == pytest.approx((0.5 + 0.25) / 2)
    assert entry["difference"]["acc"]["value"] == pytest.approx(-0.25)
    assert entry["difference"]["acc"]["lost"] is None


def test_a_short_table_tells_the_group_in_place_of_its_tasks() -> None:
    tasks = {"tasks": {"small": 1, "large": 2, "other": 3}, "groups": {"both": {"tasks": ["small", "large"]}}}
    assert list(named_entries(tasks)) == ["both", "other"]
    assert list(all_entries(tasks)) == ["both", "small", "large", "other"]
    assert named_entries({"tasks": {}}) == {}
