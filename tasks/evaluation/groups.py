"""Groups of tasks that lm_eval defines a mean for, as mmlu: the group's own figures beside those of its tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.answers import Answer
from tasks.evaluation.paired import difference
from tasks.evaluation.scored import Scored
from tasks.sources.task_definitions import TaskGroup


def group_entries(
    groups: Mapping[str, TaskGroup], dense: Mapping[str, Scored], pruned: Mapping[str, Scored], seed: int
) -> dict[str, Any]:
    """What metrics/tasks.json says of each group: in the shape of a task's entry, with the names of its tasks.

    Values and standard errors are lm_eval's. The difference is paired over all documents of the group, each weighing
    what it weighs in the mean; McNemar's test and flips are given where all weigh the same.

    Args:
        groups: by name.
        dense: task -> what the dense model scored.
        pruned: the same of the pruned model.
        seed: of the bootstrap.
    """
    return {name: _entry(group, dense, pruned, seed) for name, group in groups.items()}


def pooled(tasks: Sequence[str], answers: Mapping[str, Sequence[Answer]], metric: str, weighted: bool) -> list[float]:
    """Every document's score, scaled so that the mean of all is the group's.

    Args:
        tasks: whose documents.
        answers: task -> one model's answers.
        metric: under which every document has a score.
        weighted: whether larger tasks weigh more in the mean.
    """
    documents = sum(len(answers[name]) for name in tasks)
    weight = {name: 1.0 if weighted else documents / (len(tasks) * len(answers[name])) for name in tasks}
    return [weight[name] * each.scores[metric] for name in tasks for each in answers[name]]


def _entry(group: TaskGroup, dense: Mapping[str, Scored], pruned: Mapping[str, Scored], seed: int) -> dict[str, Any]:
    figures: dict[str, dict[str, float]] = {"dense": {}, "pruned": {}}
    weighs: dict[str, bool] = {}
    differences: dict[str, Any] = {}
    answers = [{name: scored[name].answers for name in group.tasks} for scored in (dense, pruned)]
    for asked, weighted in group.means.items():
        for metric in _with_filters(asked, dense[group.tasks[0]].figures):
            for which, scored in (("dense", dense), ("pruned", pruned)):
                figures[which] |= _mean(metric, [scored[name] for name in group.tasks], weighted)
            if all(metric in each.scores for model in answers for task in model.values() for each in task):
                weighs[metric] = weighted
                before, after = (pooled(group.tasks, model, metric, weighted) for model in answers)
                differences[metric] = difference(before, after, seed).as_json()
    return {
        "documents": sum(map(len, answers[0].values())),
        "tasks": group.tasks,
        "metric": next(iter(differences), None),
        "weighted": weighs,
        **figures,
        "difference": differences,
    }


def _with_filters(metric: str, figures: Mapping[str, float]) -> list[str]:
    """A metric under every filter that was applied, by our names: "exact_match-strict-match" beside "acc"."""
    return [
        name
        for name in figures
        if (name == metric or name.startswith(f"{metric}-")) and not name.partition("-")[0].endswith("_stderr")
    ]


def _mean(metric: str, scored: list[Scored], weighted: bool) -> dict[str, float]:
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

    base, hyphen, filter_ = metric.partition("-")
    error = f"{base}_stderr{hyphen}{filter_}"
    sizes = [each.counted for each in scored]
    found = {metric: float(aggregate_subtask_metrics([each.figures[metric] for each in scored], sizes, weighted))}
    errors = [each.figures[error] for each in scored if error in each.figures]
    if len(errors) == len(scored):
        found[error] = float(pooled_sample_stderr(errors, sizes) if weighted else unweighted_mean_stderr(errors))
    return found
