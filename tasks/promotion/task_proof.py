"""Proof of a version's figures of zero-shot tasks: they follow from the answers that lie beside them."""

from collections.abc import Mapping
from itertools import groupby
from math import isclose
from pathlib import Path
from typing import Any

from dass.files import read_json, sha256_file
from dass.masks.proof import ProofError
from tasks.evaluation.answers import Row, read_answers
from tasks.evaluation.groups import pooled
from tasks.evaluation.paired import difference

_RELATIVE = 1e-9


def check_tasks(record: Path, answers: Path, evaluate: Mapping[str, Any]) -> None:
    """Compute every mean and every difference again from the answers, and compare.

    Args:
        record: a version's tasks.json.
        answers: its answers.parquet.
        evaluate: its settings of that name.

    Raises:
        ProofError: names the task and the figure.
        InputError: the answers cannot be read.
    """
    tasks = read_json(record)
    if sha256_file(answers) != tasks["answers"]["sha256"]:
        raise ProofError(f"{answers.name} is not the file that {record.name} names.")
    for key in ("limit", "seed"):
        if tasks["settings"][key] != evaluate[key]:
            raise ProofError(
                f"{record.name}: settings.{key} is {tasks['settings'][key]!r}, asked was {evaluate[key]!r}."
            )
    found = {task: list(rows) for task, rows in groupby(read_answers(answers), key=lambda row: row.task)}
    if list(found) != list(tasks["tasks"]):
        raise ProofError(f"{record.name} names other tasks than {answers.name} has answers of.")
    for task, rows in found.items():
        _check_task(f"{record.name}: {task}", tasks["tasks"][task], rows, evaluate["seed"])
    for group, entry in tasks.get("groups", {}).items():
        _check_group(f"{record.name}: {group}", entry, found, evaluate["seed"])
    judged = [entry for entry in tasks["tasks"].values() if entry["metric"] is not None]
    for which, mean in (tasks["mean"] or {}).items():
        expected = sum(entry[which][entry["metric"]] for entry in judged) / len(judged)
        _same(f"{record.name}: mean.{which}", expected, mean)


def _check_task(where: str, entry: Mapping[str, Any], rows: list[Row], seed: int) -> None:
    _same(f"{where}.documents", len(rows), entry["documents"])
    for metric, told in entry["difference"].items():
        dense, pruned = ([getattr(row, which).scores[metric] for row in rows] for which in ("dense", "pruned"))
        for which, scores in (("dense", dense), ("pruned", pruned)):
            if set(scores) <= {0.0, 1.0}:
                _same(f"{where}.{which}.{metric}", sum(scores) / len(scores), entry[which][metric])
        for key, expected in difference(dense, pruned, seed).as_json().items():
            _same(f"{where}.difference.{metric}.{key}", expected, told[key])


def _check_group(where: str, entry: Mapping[str, Any], found: Mapping[str, list[Row]], seed: int) -> None:
    if unknown := [task for task in entry["tasks"] if task not in found]:
        raise ProofError(f"{where} is of {unknown[0]}, which has no answers.")
    for metric, told in entry["difference"].items():
        models = [
            {task: [getattr(row, which) for row in found[task]] for task in entry["tasks"]}
            for which in ("dense", "pruned")
        ]
        dense, pruned = (pooled(entry["tasks"], model, metric, entry["weighted"][metric]) for model in models)
        for which, scores in (("dense", dense), ("pruned", pruned)):
            _same(f"{where}.{which}.{metric}", sum(scores) / len(scores), entry[which][metric])
        for key, expected in difference(dense, pruned, seed).as_json().items():
            _same(f"{where}.difference.{metric}.{key}", expected, told[key])


def _same(what: str, expected: Any, found: Any) -> None:
    pairs = zip(expected, found, strict=True) if isinstance(expected, list) else [(expected, found)]
    for ours, theirs in pairs:
        numbers = isinstance(ours, float) and isinstance(theirs, int | float)
        if not (isclose(ours, theirs, rel_tol=_RELATIVE, abs_tol=_RELATIVE) if numbers else ours == theirs):
            raise ProofError(f"{what} is {theirs!r}, and follows as {ours!r} from the answers.")
