"""The figures that points are compared by: a name that can be none is refused, one that no point has is told."""

from collections.abc import Iterable, Mapping

from dass.errors import InputError
from tasks.workspace.settings import Sweep

_SCORES = ("perplexity", "mean_loss", "word_perplexity", "byte_perplexity")
_OF_EVERY_POINT = (
    *("ratio", "divergence.kl", "divergence.top1_agreement", "divergence.top5_overlap", "divergence.tokens"),
    *(
        "sparsity.mlp",
        "sparsity.model",
        "mask_sparsity.mlp",
        "mask_sparsity.model",
        "zeros.base_mlp",
        "zeros.pruned_mlp",
    ),
    *(f"{model}.{score}" for model in ("pruned", "dense") for score in _SCORES),
    *("interval.level", "interval.resamples", "context_length", "windows", "tokens", "words", "bytes"),
)
_OF_SOME = ("texts", "tasks", "recover", "overlap")
"""Behind these stand names of texts, tasks and their metrics, which a point has where it measures them."""


def check_objectives(asked: Sweep) -> None:
    """Raises InputError: points are to be compared by nothing, or by what no point can have."""
    if not asked.objectives:
        raise InputError("sweep.objectives is empty: name a figure and which way is better, for example {ratio: min}.")
    for name in asked.objectives:
        root, dot, rest = name.partition(".")
        if name not in _OF_EVERY_POINT and not (root in _OF_SOME and dot and rest):
            raise InputError(
                f"sweep.objectives names {name}, which is no figure of a point: expected ratio, divergence.kl, "
                "sparsity.mlp, pruned.perplexity or another of metrics/evaluation.json, or tasks.NAME.pruned.METRIC."
            )


def lacking(objectives: Mapping[str, str], measured: Iterable[Mapping[str, float]]) -> str | None:
    """What to say of an objective that none of these points has; None: each has been met, or nothing was measured."""
    figures = [set(each) for each in measured]
    missing = [name for name in objectives if not any(name in each for each in figures)]
    if not figures or not missing:
        return None
    alike = sorted(name for name in set().union(*figures) if name.partition(".")[0] == missing[0].partition(".")[0])
    there = f"it has {', '.join(alike[:8])}" if alike else f"nothing of {missing[0].partition('.')[0]} was measured"
    return f"No point has the figure {missing[0]} of sweep.objectives ({there}): nothing can be compared by it."
