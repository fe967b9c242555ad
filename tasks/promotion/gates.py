"""The rules a version must hold to become champion: each one's limit, its value here, and whether it holds.

Pure: what is judged was read before. A rule that cannot be judged does not hold.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from tasks.evaluation.task_record import all_entries
from tasks.workspace.settings import Promote, TaskDrop

KERNELS = {"2:4": "sparse tensor cores, 2:4 along in_features"}
"""Kernels a rule can name, and what they run."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a version.

    Attributes:
        manifest: its manifest.
        evaluation: its metrics/evaluation.json, with its verdicts.
        tasks: its metrics/tasks.json.
        git_dirty: whether it was made from uncommitted files; None when that is not known.
        proof: the name of the step its proof failed at, "" when every step held, None when it was not asked for.
        champion_ratio: perplexity ratio of the present champion; None when there is none, or this is it.
    """

    manifest: dict[str, Any]
    evaluation: dict[str, Any]
    tasks: dict[str, Any]
    git_dirty: bool | None
    proof: str | None
    champion_ratio: float | None


@dataclass(frozen=True)
class Ruling:
    """One rule's outcome.

    Attributes:
        rule: its name under `promote` in params.yaml.
        limit: what was asked.
        value: what was found; None where nothing was measured.
        passed: whether it holds.
        told: by how much it failed, or how it holds, in words.
    """

    rule: str
    limit: float | str | bool
    value: float | str | bool | None
    passed: bool
    told: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(rules: Promote, evidence: Evidence) -> list[Ruling]:
    """Every rule that is set, in the order of params.yaml, and every verdict that there is."""
    evaluation = evidence.evaluation
    rulings: list[Ruling] = []
    if rules.max_ratio is not None:
        rulings.append(_at_most("max_ratio", rules.max_ratio, evaluation["ratio"]))
    if rules.min_sparsity is not None:
        rulings.append(_at_least("min_sparsity", rules.min_sparsity, evaluation["sparsity"]["mlp"]))
    for task, limit in rules.max_task_drop.items():
        measured = all_entries(evidence.tasks).get(task)
        rulings.append(_task_drop(task, limit, measured, task in rules.optional_tasks))
    rulings += _divergence(rules, evaluation["divergence"])
    if rules.max_overlap is not None:
        tasks = {f"task {name}": each for name, each in evidence.tasks.get("overlap", {}).items()}
        texts = {f"text {name}": each for name, each in evaluation["overlap"].items()}
        rulings.append(_overlap(rules.max_overlap, texts | tasks))
    if rules.max_layer_error is not None:
        rulings.append(_layer_error(rules.max_layer_error, evidence.manifest["layers"]))
    if rules.kernel is not None:
        rulings.append(_kernel(rules.kernel, evidence.manifest["layers"]))
    if rules.margin is not None and evidence.champion_ratio is not None:
        rulings.append(_at_most("margin", evidence.champion_ratio * (1 + rules.margin), evaluation["ratio"]))
    if rules.clean_git:
        told = {True: "made from files that were not committed", False: "", None: "not made in a git repository"}
        dirty = evidence.git_dirty
        rulings.append(Ruling("clean_git", True, None if dirty is None else not dirty, dirty is False, told[dirty]))
    found = [*evaluation["verdicts"], *evidence.tasks.get("verdicts", [])]
    for each in found:  # asked of every version: what such figures say is not known
        rulings.append(Ruling(each["verdict"], "none", "found", False, each["told"]))
    if rules.proof:
        rulings.append(_proof(evidence.proof))
    return rulings


def _at_most(rule: str, limit: float, value: float) -> Ruling:
    passed = value <= limit
    return Ruling(rule, limit, value, passed, "" if passed else f"{value - limit:.4g} above")


def _at_least(rule: str, limit: float, value: float) -> Ruling:
    passed = value >= limit
    return Ruling(rule, limit, value, passed, "" if passed else f"{limit - value:.4g} below")


def _task_drop(task: str, limit: float | TaskDrop, measured: dict[str, Any] | None, optional: bool) -> Ruling:
    """Dense minus pruned; where it must be certain, the far end of its interval."""
    rule, asked = f"max_task_drop.{task}", limit if isinstance(limit, TaskDrop) else TaskDrop(drop=limit)
    if measured is None:
        return Ruling(rule, asked.drop, None, optional, "not evaluated" + (", and optional" if optional else ""))
    if measured["metric"] is None:
        return Ruling(rule, asked.drop, None, False, "no metric of this task says right or wrong")
    between = measured["difference"][measured["metric"]]
    if not asked.certain:
        return _at_most(rule, asked.drop, -between["value"])
    ruling = _at_most(rule, asked.drop, -between["interval"][0])
    told = f"{between['level']:.0%} certain, measured {-between['value']:.4g}"
    return replace(ruling, told=f"{told}, {ruling.told}".rstrip(", "))


def _divergence(rules: Promote, measured: dict[str, Any] | None) -> list[Ruling]:
    rulings = []
    for rule, limit, key, holds in (
        ("max_kl", rules.max_kl, "kl", _at_most),
        ("min_top1_agreement", rules.min_top1_agreement, "top1_agreement", _at_least),
    ):
        if limit is not None and measured is None:
            rulings.append(Ruling(rule, limit, None, False, "not measured"))
        elif limit is not None and measured is not None:
            rulings.append(holds(rule, limit, measured[key]))
    return rulings


def _overlap(limit: float, measured: dict[str, dict[str, Any]]) -> Ruling:
    """The text or task that overlaps most decides; one without a single 13-gram cannot be judged."""
    shares = {name: each["share"] for name, each in measured.items()}
    if unknown := ", ".join(name for name, share in shares.items() if share is None):
        return Ruling("max_overlap", limit, None, False, f"not measured of {unknown}")
    worst = max(shares, key=lambda name: shares[name])
    ruling = _at_most("max_overlap", limit, shares[worst])
    told = f"{worst}: {shares[worst]:.1%} of its 13-grams are in the calibration windows"
    return Ruling("max_overlap", limit, ruling.value, ruling.passed, "" if ruling.passed else told)


def _layer_error(limit: float, layers: list[dict[str, Any]]) -> Ruling:
    errors = {layer["layer"]: layer["relative_error"] for layer in layers}
    if None in errors.values():
        return Ruling("max_layer_error", limit, None, False, "not measured under propagation: dense")
    worst = max(errors, key=lambda index: errors[index])
    ruling = _at_most("max_layer_error", limit, errors[worst])
    return Ruling("max_layer_error", limit, ruling.value, ruling.passed, f"layer {worst}, {ruling.told}".rstrip(", "))


def _kernel(kernel: str, layers: list[dict[str, Any]]) -> Ruling:
    runs = [able for layer in layers for able in layer["runs_2_4"].values()]
    value = f"{sum(runs)} of {len(runs)} matrices"
    return Ruling("kernel", kernel, value, all(runs), "" if all(runs) else "prune.layout decides which it runs")


def _proof(failed: str | None) -> Ruling:
    if failed is None:
        return Ruling("proof", True, None, False, "not checked")
    return Ruling("proof", True, not failed, not failed, f"failed at: {failed}" if failed else "")
