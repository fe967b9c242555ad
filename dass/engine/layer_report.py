"""What pruning one layer did, and what it left behind."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from dass.engine.made import Made
from dass.masks.detect import runs_on_sparse_tensor_cores
from dass.method.methods import PROJECTIONS, Method, Projection, Score
from dass.method.pattern import Pattern
from dass.method.statistics import MlpStatistics
from dass.model.glu import GluMlp


@dataclass(frozen=True)
class LayerReport:
    """What pruning one layer did.

    Attributes:
        layer: index of the layer.
        pattern: what was asked of this layer (`owl` asks less of some); "none": it was skipped.
        method: what its weights were chosen by (`auto` chooses for each layer).
        alpha: DaSS's exponent; None for the other methods.
        sparsity: share of weights the mask removes, per projection, all MLPs of the layer together.
        norm: min, median and max of ‖z_i‖₂ over the layer's intermediate neurons.
        relative_error: ‖y_pruned − y_dense‖ / ‖y_dense‖ of the MLP's output, on the first ERROR_TOKENS tokens; None
            when no tokens were at hand (propagation "dense").
        runs_2_4: per projection, whether sparse tensor cores can run the matrix: 2:4 along in_features.
        damping: λ that SparseGPT's Hessians took; None for the other methods.
        fitted_error: relative error of what was re-fitted on the tokens it was fitted to: of the MLPs' outputs, or with
            `reconstruct-block` of the layer's, as the root mean square over tokens. None without a re-fit, and where
            no tokens were at hand.
        held_back_error: the same on the windows held back; None when there are none.
        refit_damping: per projection, the λ of its closed form that the windows held back chose (of several MLPs the
            largest), None where they chose no re-fit; None when there was no choice.
        starved_experts: experts routed fewer than `min_expert_tokens` tokens, judged on all of the layer's tokens.
        refined: what swaps did, per projection, all MLPs of the layer together: swaps, error_before and error_after
            (`dass.method.swaps.Refinement`); empty where none were asked for.
        seconds: wall time.
    """

    layer: int
    pattern: str
    method: Method
    alpha: float | None
    sparsity: dict[Projection, float]
    norm: dict[str, float]
    relative_error: float | None
    runs_2_4: dict[Projection, bool]
    damping: float | None = None
    fitted_error: float | None = None
    held_back_error: float | None = None
    refit_damping: dict[Projection, float | None] | None = None
    starved_experts: list[str] = field(default_factory=list)
    refined: dict[Projection, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def score(self) -> Score:
        """What its weights were chosen by."""
        return Score(self.method, self.alpha)


@dataclass(frozen=True)
class LayerResult:
    """A pruned layer.

    Attributes:
        report: what was done.
        statistics: of each MLP, by its full name ("model.layers.0.mlp").
        keep: keep masks by full parameter name, bool, True = kept.
        weights: new values of parameters whose kept weights changed, and of tuned norms, by full name, in the stored
            dtype.
    """

    report: LayerReport
    statistics: dict[str, MlpStatistics]
    keep: dict[str, Tensor]
    weights: dict[str, Tensor]


def layer_report(
    index: int,
    pattern: Pattern | None,
    mlps: Sequence[GluMlp],
    made: Made,
    statistics: Sequence[MlpStatistics],
    dtype: torch.dtype,
) -> LayerReport:
    """What can be said of a pruned layer without running it. No `pattern`: it was skipped. `dtype`: as stored."""
    norms = torch.cat([seen.norms.z_I for seen in statistics])
    sparsity: dict[Projection, float] = {}
    runs: dict[Projection, bool] = {}
    for projection in PROJECTIONS:
        masks = [each.keep[projection] for each in made.pruned]
        kept, weights = sum(int(mask.count_nonzero()) for mask in masks), sum(mask.numel() for mask in masks)
        sparsity[projection] = 1.0 - kept / weights
        runs[projection] = all(runs_on_sparse_tensor_cores(mask, dtype) for mask in masks)
    refined: dict[Projection, dict[str, float]] = {}
    for projection in PROJECTIONS:
        if parts := [each.refinements[projection] for each in made.pruned if projection in each.refinements]:
            refined[projection] = asdict(sum(parts[1:], parts[0]))
    dampings = [each.damping for each in made.pruned if each.damping is not None]
    chosen = [each.refit_damping for each in made.pruned if each.refit_damping]
    return LayerReport(
        layer=index,
        pattern="none" if pattern is None else str(pattern),
        method=made.score.method,
        alpha=made.score.alpha,
        sparsity=sparsity,
        norm={"min": norms.min().item(), "median": norms.median().item(), "max": norms.max().item()},
        relative_error=None,
        runs_2_4=runs,
        damping=max(dampings, default=None),
        refit_damping={name: _largest([each.get(name) for each in chosen]) for name in PROJECTIONS} if chosen else None,
        starved_experts=[mlp.name for mlp, seen in zip(mlps, statistics, strict=True) if seen.starved],
        refined=refined,
    )


def _largest(dampings: Sequence[float | None]) -> float | None:
    return max((each for each in dampings if each is not None), default=None)
