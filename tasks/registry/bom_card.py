"""What a bill of materials says of the model itself: CycloneDX's model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.task_record import named_entries
from tasks.registry.card import gains

_BANDS = ("kl", "top1_agreement", "top5_overlap")


def model_card(
    manifest: Mapping[str, Any],
    evaluation: dict[str, Any],
    tasks: dict[str, Any],
    version: dict[str, Any],
    recovery: Mapping[str, Any],
    data_sets: Sequence[str],
) -> dict[str, Any]:
    """The model card as JSON values.

    Args:
        manifest, evaluation, tasks, version, recovery: as `tasks.registry.bom.bill_of_materials`.
        data_sets: references of the data sets among the components.
    """
    parameters = {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "architectureFamily": version["architecture"]["family"],
        "modelArchitecture": version["architecture"]["class"],
        "datasets": [{"ref": ref} for ref in data_sets],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    return {
        "modelParameters": {key: value for key, value in parameters.items() if value is not None},
        "quantitativeAnalysis": {"performanceMetrics": [*_text_metrics(evaluation), *_task_metrics(tasks)]},
        "considerations": _considerations(manifest, evaluation, version, recovery),
    }


def _text_metrics(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, text in {"evaluation": evaluation, **evaluation["texts"]}.items():
        where = f"{name}, context length {evaluation['context_length']}"
        found += [
            _metric("perplexity", text[which]["perplexity"], f"{where}, {which}") for which in ("dense", "pruned")
        ]
        interval = (text["interval"] or {}).get("ratio")
        found.append(_metric("perplexity ratio", text["ratio"], where, interval))
        divergence = text["divergence"] or {}
        found += [_metric(band, divergence[band], where) for band in _BANDS if band in divergence]
    found += [_metric("share of zeros", share, part) for part, share in evaluation["sparsity"].items()]
    return found


def _task_metrics(tasks: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, entry in named_entries(tasks).items():
        for metric, between in entry["difference"].items():
            found += [_metric(metric, entry[which][metric], f"{name}, {which}") for which in ("dense", "pruned")]
            found.append(_metric(f"{metric} pruned - dense", between["value"], name, between["interval"]))
    return found


def _metric(kind: str, value: float, part: str, interval: Sequence[float] | None = None) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": kind, "value": repr(value), "slice": part}
    if interval is not None:
        low, high = interval
        metric["confidenceInterval"] = {"lowerBound": repr(low), "upperBound": repr(high)}
    return metric


def _considerations(
    manifest: Mapping[str, Any], evaluation: dict[str, Any], version: dict[str, Any], recovery: Mapping[str, Any]
) -> dict[str, Any]:
    zeros, ratio = evaluation["sparsity"]["mlp"], evaluation["ratio"]
    cost = f"{zeros:.1%} of the MLP weights are zero; perplexity is {ratio:.3f} times its base's"
    verdicts = [f"{each['verdict']}: {each['told']}" for each in evaluation["verdicts"]]
    return {
        "useCases": ["What its base is for, within its base's licence."],
        "technicalLimitations": [*gains(manifest, evaluation, version), *verdicts],
        "performanceTradeoffs": [f"{cost}{', after training' if recovery['trained'] else ''}."],
        "ethicalConsiderations": [
            {
                "name": "It has its base's biases, and pruning may shift them: only what is listed here was measured.",
                "mitigationStrategy": "Measure it on the use that is meant, beside its base.",
            }
        ],
    }
