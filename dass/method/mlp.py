"""Pruning one GLU MLP from its statistics: masks, and new values for the weights that stay where a method has them.

Pure: tensors in, tensors out, no model and no tokens. Axes: O out_features, C in_features, I intermediate, H hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dass.method.mask import keep_mask
from dass.method.methods import PROJECTIONS, Projection
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.reconstruct import Equations, refit_judged
from dass.method.score import importance
from dass.method.sparsegpt import DEFAULT_DAMPING as SPARSEGPT_DAMPING
from dass.method.sparsegpt import sparsegpt
from dass.method.statistics import MlpStatistics
from dass.method.swaps import Refinement, refine
from dass.method.transposable import transposable_mask

INPUTS: tuple[Projection, ...] = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class PrunedMlp:
    """What became of one MLP.

    Attributes:
        keep: bool, True = kept, shape of each weight.
        weights: new values of the matrices that were updated (removed ones +0.0); the others only lose weights.
        damping: the λ SparseGPT's Hessians took, as a share of their mean diagonal; None for the other methods.
        refinements: what swaps did to each matrix, where the plan asks for them.
        refit_damping: the λ of each matrix's re-fit that tokens held back chose; None where they chose no re-fit.
    """

    keep: dict[Projection, Tensor]
    weights: dict[Projection, Tensor]
    damping: float | None = None
    refinements: dict[Projection, Refinement] = field(default_factory=dict)
    refit_damping: dict[Projection, float | None] = field(default_factory=dict)

    def with_weights(self, weights: Mapping[Projection, Tensor]) -> "PrunedMlp":
        """The same masks with further new values."""
        return replace(self, weights={**self.weights, **weights})


def prune_mlp(
    weights: Mapping[Projection, Tensor], statistics: MlpStatistics, plan: Plan, pattern: Pattern
) -> PrunedMlp:
    """Masks of gate, up and down, refined where the plan says so; SparseGPT also gives new values.

    A projection that the plan leaves alone keeps every weight, and has no new values.

    Args:
        weights: gate, up (I, H) and down (H, I), dense, any float dtype.
        statistics: of this MLP, with Gram matrices for SparseGPT and for swaps.
        plan: method, layout, alpha, damping, refinement, projections.
        pattern: the pattern of this layer.

    Raises:
        InputError: groups that do not tile a matrix.
        NumericalError: a Hessian no damping makes invertible.
    """
    chosen = _chosen(weights, statistics, plan, pattern)
    return _refined(chosen, weights, statistics, plan, pattern) if plan.refine == "swaps" else chosen


def _chosen(weights: Mapping[Projection, Tensor], statistics: MlpStatistics, plan: Plan, pattern: Pattern) -> PrunedMlp:
    """What the method alone makes of an MLP."""
    if plan.method == "sparsegpt":
        return _sparsegpt(weights, statistics, plan, pattern)
    method = plan.score.method
    keep: dict[Projection, Tensor] = {}
    for projection in plan.only:
        scores = importance(weights[projection], projection, statistics.norms, method, plan.alpha, plan.layout)
        if _in_blocks(projection, plan):
            keep[projection] = transposable_mask(scores.whole())
        else:
            keep[projection] = keep_mask(scores, pattern, plan.axis(projection))
    return PrunedMlp(_with_the_whole(keep, weights), {})


def _refined(
    pruned: PrunedMlp, weights: Mapping[Projection, Tensor], statistics: MlpStatistics, plan: Plan, pattern: Pattern
) -> PrunedMlp:
    """The same counts, other weights: swaps lower each matrix's error on the inputs it gets from dense ones."""
    refined = {
        name: refine(
            weights[name],
            pruned.keep[name],
            _gram(name, statistics),
            pattern,
            plan.axis(name),
            transposable=_in_blocks(name, plan),
            max_swaps=plan.max_swaps,
            values_OC=pruned.weights.get(name),
        )
        for name in plan.only
    }
    return replace(
        pruned,
        keep={**pruned.keep, **{name: each.keep_OC for name, each in refined.items()}},
        weights={name: each.values_OC for name, each in refined.items() if each.values_OC is not None},
        refinements={name: each.refinement for name, each in refined.items()},
    )


def _with_the_whole(
    keep: Mapping[Projection, Tensor], weights: Mapping[Projection, Tensor]
) -> dict[Projection, Tensor]:
    """A mask of each matrix: one that removes nothing where there is none."""
    return {
        name: keep[name] if name in keep else torch.ones_like(weights[name], dtype=torch.bool) for name in PROJECTIONS
    }


def _gram(name: Projection, statistics: MlpStatistics) -> Tensor:
    """XᵀX of what a matrix is given in the dense MLP."""
    gram_CC = statistics.gram_z_II if name == "down_proj" else statistics.gram_x_HH
    assert gram_CC is not None
    return gram_CC


def refit_inputs(
    pruned: PrunedMlp,
    weights: Mapping[Projection, Tensor],
    fitted: Equations,
    plan: Plan,
    held_back: Equations | None = None,
) -> PrunedMlp:
    """Re-fit gate and up to the dense matrices' outputs. What feeds them does not change when the layer is pruned.

    Args:
        pruned: masks, and the values to start from.
        weights: dense weights.
        fitted: of the MLP's inputs, XᵀX alone.
        plan: damping, projections.
        held_back: the same of tokens to judge by.
    """
    for name in INPUTS:
        if name not in plan.only:
            continue
        pruned = _refit(name, pruned, weights, fitted, held_back, plan)
    return pruned


def refit_down(
    pruned: PrunedMlp,
    weights: Mapping[Projection, Tensor],
    fitted: Equations,
    plan: Plan,
    held_back: Equations | None = None,
) -> PrunedMlp:
    """Re-fit down to the dense MLP's output, given what the pruned gate and up feed it.

    Args:
        pruned: masks, and the values to start from.
        weights: dense weights.
        fitted: ZᵀZ of the inputs that the pruned MLP's down projection gets, float32, and YᵀZ with Y the dense MLP's
            output and the same Z. Without YᵀZ, Y is what the dense down makes of Z.
        plan: damping, projections.
        held_back: the same of tokens to judge by.
    """
    return _refit("down_proj", pruned, weights, fitted, held_back, plan) if "down_proj" in plan.only else pruned


def _refit(
    name: Projection,
    pruned: PrunedMlp,
    weights: Mapping[Projection, Tensor],
    fitted: Equations,
    held_back: Equations | None,
    plan: Plan,
) -> PrunedMlp:
    value, damping = refit_judged(
        weights[name], pruned.keep[name], fitted, held_back, plan.damping, start_OC=pruned.weights.get(name)
    )
    pruned = pruned.with_weights({name: value})
    return pruned if held_back is None else replace(pruned, refit_damping={**pruned.refit_damping, name: damping})


def _sparsegpt(
    weights: Mapping[Projection, Tensor], statistics: MlpStatistics, plan: Plan, pattern: Pattern
) -> PrunedMlp:
    damping = SPARSEGPT_DAMPING if plan.damping is None else plan.damping
    results = {}
    for projection in plan.only:
        choose = transposable_mask if _in_blocks(projection, plan) else None
        results[projection] = sparsegpt(
            weights[projection], _gram(projection, statistics), pattern, damping, choose=choose
        )
    return PrunedMlp(
        _with_the_whole({name: result.keep_OC for name, result in results.items()}, weights),
        {name: result.weight_OC for name, result in results.items()},
        max((result.damping for result in results.values()), default=None),
    )


def _in_blocks(projection: Projection, plan: Plan) -> bool:
    # down's groups along I already are its contraction axis: nothing to reconcile there.
    return plan.layout == "transposable" and projection != "down_proj"
