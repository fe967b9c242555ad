"""The layer-wise engine: one buffer of hidden states, pushed through the decoder a layer at a time.

For each layer: (1) dense statistics on the calibration hidden states, (2) masks from the dense weights, and new values
for kept weights where the plan wants them, (3) removed weights become +0.0, (4) the pruned layer's outputs replace the
buffer and are the next layer's inputs.

Axes: S windows, B windows of a batch, T tokens a window, H hidden, I intermediate.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dass.engine.fits import check_fits
from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice, wanted_by
from dass.engine.ranks import ALONE, Ranks
from dass.errors import InputError
from dass.masks.detect import runs_on_sparse_tensor_cores
from dass.method.methods import PROJECTIONS, Method, Projection, Score
from dass.method.mlp import PrunedMlp, prune_mlp, refit_down, refit_inputs
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.reconstruct_mlp import refit_mlp
from dass.method.statistics import MlpStatistics, gram
from dass.model.decoder import Decoder
from dass.model.glu import GluMlp, parameters_of
from dass.model.layer import LayerRunner

ENGINE_VERSION = "3"
"""Changes whenever the same inputs may give other masks. Part of every fingerprint."""

REFIT_TOKENS = 65536
"""`reconstruct-mlp` trains on the first tokens an MLP is given, up to this many."""


@dataclass(frozen=True)
class LayerReport:
    """What pruning one layer did.

    Attributes:
        layer: index of the layer.
        pattern: what was asked of this layer (`owl` asks less of some).
        method: what its weights were chosen by (`auto` chooses for each layer).
        alpha: DaSS's exponent; None for the other methods.
        sparsity: share of weights the mask removes, per projection, all MLPs of the layer together.
        norm: min, median and max of ‖z_i‖₂ over the layer's intermediate neurons.
        relative_error: ‖y_pruned − y_dense‖ / ‖y_dense‖ of the MLP's output, on the first ERROR_TOKENS tokens; None
            when no tokens were at hand (propagation "dense").
        runs_2_4: per projection, whether sparse tensor cores can run the matrix: 2:4 along in_features.
        damping: λ that SparseGPT's Hessians took; None for the other methods.
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
        weights: new values of parameters whose kept weights changed, by full name, in the stored dtype.
    """

    report: LayerReport
    statistics: dict[str, MlpStatistics]
    keep: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Made:
    """What one score makes of a layer.

    Attributes:
        score: that score.
        pruned: of each MLP.
        keep: masks by parameter name inside the layer.
        values: new values of parameters whose kept weights changed, likewise.
    """

    score: Score
    pruned: list[PrunedMlp]
    keep: dict[str, Tensor]
    values: dict[str, Tensor]


class Companion(Protocol):
    """Goes through the layers beside a pruner."""

    def choose(self, layer: nn.Module, make: Callable[[Score], Made]) -> Made:
        """What is to become of the due layer, which is dense now and afterwards."""

    def follow(self, layer: nn.Module) -> None:
        """The layer is pruned now; it may be left otherwise, for nobody needs it any more."""


class LayerwisePruner:
    """Prunes a decoder one layer after the other. Call `prune_layer` or `replay_layer` for 0, 1, 2 ... in order."""

    def __init__(
        self,
        decoder: Decoder,
        input_ids_ST: Tensor,
        what: Plan,
        *,
        patterns: Sequence[Pattern] | None = None,
        scores: Sequence[Score] | None = None,
        buffering: Buffering | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Embed the calibration windows.

        Args:
            decoder: the model. Its layers change in place.
            input_ids_ST: calibration tokens, LongTensor (samples, length).
            what: what to remove.
            patterns: each layer's pattern; None is the plan's everywhere.
            scores: what each layer's weights are chosen by; None is the plan's everywhere, or what a companion of
                `prune_layer` says.
            buffering: how hidden states are held.
            ranks: the processes that share the windows.

        Raises:
            InputError: tokens of a wrong shape or type, or a model that `what` cannot prune.
        """
        check_fits(decoder, what)
        if ranks.size > 1 and what.update == "reconstruct-mlp":
            raise InputError(
                f'update is "reconstruct-mlp" and processes {ranks.size}: expected 1, or update: reconstruct.'
            )
        self._decoder, self._plan, self._ranks = decoder, what, ranks
        self._patterns = list(patterns) if patterns is not None else [what.pattern] * len(decoder)
        self._scores = scores
        self._pass = LayerwisePass(decoder, input_ids_ST, buffering, ranks)

    def close(self) -> None:
        """Give back the buffer, on disk too."""
        self._pass.hidden.close()

    @property
    def carries_state(self) -> bool:
        """Whether the layers that are due need more of those in front than hidden states."""
        return self._pass.carries_state

    @property
    def hidden_bytes(self) -> int:
        """Of this rank's hidden states."""
        return self._pass.hidden.nbytes

    @property
    def next_layer(self) -> int:
        """The layer that is due."""
        return self._pass.layer

    def save_hidden(self, path: Path) -> None:
        """Write this rank's hidden states, the inputs of `next_layer`."""
        self._pass.hidden.save(path)

    def resume_at(self, layer: int, path: Path) -> None:
        """Go on at `layer` with hidden states written by `save_hidden` before it."""
        self._pass.hidden.load(path)
        self._pass.layer = layer

    def prune_layer(self, index: int, companion: Companion | None = None) -> LayerResult:
        """Collect, mask, set to zero and propagate one layer.

        Args:
            index: the due layer.
            companion: chooses the layer's score in place of the plan.

        Raises:
            NumericalError: the layer's activations are NaN or infinite.
        """
        assert index == self.next_layer, "layers are pruned in order, each once"
        began = time.perf_counter()
        with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
            runner = self._pass.runner(layer)
            collected = self._pass.collect(runner, wanted_by(self._plan))
            statistics = collected.statistics
            stored = self._decoder.stored_weights(index, parameters_of(runner.mlps))
            dense = [mlp.views(stored) for mlp in runner.mlps]
            pattern = self._patterns[index]

            def make(score: Score) -> Made:
                what = self._plan.scored(score)
                pruned = [
                    prune_mlp(weights, seen, what, pattern) for weights, seen in zip(dense, statistics, strict=True)
                ]
                if what.update != "none":
                    pruned = self._refit(runner, dense, pruned, statistics)
                return Made(score, pruned, *joined(runner.mlps, pruned, stored))

            made = companion.choose(layer, make) if companion is not None else make(self._score(index))
            write_parameters(layer, made.keep, made.values)
            error = self._pass.propagate(runner, collected.dense_outputs)
            if companion is not None:
                companion.follow(layer)
        self._pass.layer += 1
        prefix = self._decoder.layer_name(index)
        dtype = next(iter(stored.values())).dtype
        report = replace(
            layer_report(index, pattern, runner.mlps, made, statistics, dtype),
            relative_error=error,
            seconds=time.perf_counter() - began,
        )
        return LayerResult(
            report,
            {f"{prefix}.{mlp.name}": seen for mlp, seen in zip(runner.mlps, statistics, strict=True)},
            {f"{prefix}.{name}": mask for name, mask in made.keep.items()},
            {f"{prefix}.{name}": value for name, value in made.values.items()},
        )

    def _score(self, index: int) -> Score:
        return self._plan.score if self._scores is None else self._scores[index]

    def replay_layer(self, index: int, keep: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Apply what `prune_layer` found earlier and propagate: the buffer becomes what it left behind, bit for bit."""
        assert index == self.next_layer, "layers are pruned in order, each once"
        prefix = f"{self._decoder.layer_name(index)}."
        with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
            runner = self._pass.runner(layer)
            if runner.splits:
                for rows, hidden_BTH, call, _ in self._pass.batches():
                    self._pass.hidden.write(rows, runner.attention_half(hidden_BTH, call))
            write_parameters(layer, keep, weights, prefix)
            self._pass.propagate(runner, [])
        self._pass.layer += 1

    def _refit(
        self,
        runner: LayerRunner,
        dense: list[dict[Projection, Tensor]],
        pruned: list[PrunedMlp],
        statistics: list[MlpStatistics],
    ) -> list[PrunedMlp]:
        """New values for the weights that stay: gate and up first, then down behind them, then all three together.

        An expert that saw too few tokens to be judged by saw too few to be fitted to: it keeps its values.
        """
        fitted = [which for which, seen in enumerate(statistics) if not seen.starved]
        train = self._plan.update == "reconstruct-mlp"
        pruned = list(pruned)
        for which in fitted:
            pruned[which] = refit_inputs(pruned[which], dense[which], statistics[which], self._plan)
        device = self._pass.hidden.device
        grams, moments, samples = {}, {}, {which: _Samples(REFIT_TOKENS) for which in fitted}
        for which in fitted:
            intermediate, hidden = runner.mlps[which].sizes
            grams[which] = torch.zeros(intermediate, intermediate, dtype=torch.float64, device=device)
            moments[which] = torch.zeros(hidden, intermediate, dtype=torch.float64, device=device)

        def see(which: int, x: Tensor, z: Tensor) -> None:
            if which not in grams:
                return
            y = nn.functional.linear(z.float(), dense[which]["down_proj"].float())
            z_pruned = runner.mlps[which].intermediate(x, pruned[which].weights)
            grams[which] += gram(z_pruned)
            moments[which] += gram(z_pruned, y)
            if train:
                samples[which].add(x, y)

        for _, state_BTH, call, _ in self._pass.batches():
            runner.observe(state_BTH, call, see)
        for which in fitted:
            self._ranks.sum_(grams[which], moments[which])
            pruned[which] = refit_down(
                pruned[which], dense[which], grams[which].float(), moments[which].float(), self._plan
            )
            if train:
                x_TH, y_TH = samples[which].tensors()
                together = refit_mlp(
                    pruned[which].weights, pruned[which].keep, x_TH, y_TH, runner.mlps[which].activation
                )
                pruned[which] = pruned[which].with_weights(together.weights)
        return pruned


class _Samples:
    """The first tokens an MLP is given, with the output wanted from it."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        x_NH, y_NH = x.reshape(-1, x.shape[-1])[: self._left], y.reshape(-1, y.shape[-1])[: self._left]
        self._left -= len(x_NH)
        self._x.append(x_NH.clone())
        self._y.append(y_NH.to(x.dtype))

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._x), torch.cat(self._y)


def write_parameters(
    layer: nn.Module, keep: Mapping[str, Tensor], values: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Make a layer the pruned one: new values where there are any, +0.0 where removed, other weights untouched.

    Args:
        layer: the layer.
        keep: parameter name -> mask of its shape, True = kept.
        values: parameter name -> new values of its shape.
        prefix: what stands before the names inside the layer.
    """
    for name, mask in keep.items():
        parameter = layer.get_parameter(name.removeprefix(prefix)).detach()
        if name in values:
            parameter.copy_(values[name])
        parameter.masked_fill_(mask.logical_not().to(parameter.device), 0.0)


def layer_report(
    index: int,
    pattern: Pattern,
    mlps: Sequence[GluMlp],
    made: Made,
    statistics: Sequence[MlpStatistics],
    dtype: torch.dtype,
) -> LayerReport:
    """What can be said of a pruned layer without running it. `dtype` is the stored one."""
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
    return LayerReport(
        layer=index,
        pattern=str(pattern),
        method=made.score.method,
        alpha=made.score.alpha,
        sparsity=sparsity,
        norm={"min": norms.min().item(), "median": norms.median().item(), "max": norms.max().item()},
        relative_error=None,
        runs_2_4=runs,
        damping=max(dampings, default=None),
        starved_experts=[mlp.name for mlp, seen in zip(mlps, statistics, strict=True) if seen.starved],
        refined=refined,
    )


def joined(
    mlps: Sequence[GluMlp], pruned: Sequence[PrunedMlp], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks, and the new values where there are any, by parameter name inside the layer.

    A parameter that holds several MLPs' matrices gets one mask; matrices that were not updated keep the stored values.
    """
    keep = {name: torch.ones_like(value, dtype=torch.bool) for name, value in stored.items()}
    updated = {mlp.places[name].parameter for mlp, each in zip(mlps, pruned, strict=True) for name in each.weights}
    values = {name: stored[name].clone() for name in updated}
    for mlp, each in zip(mlps, pruned, strict=True):
        for projection, place in mlp.places.items():
            keep[place.parameter][place.at] = each.keep[projection]
            if projection in each.weights:
                values[place.parameter][place.at] = each.weights[projection]
    for name, value in values.items():
        value.masked_fill_(keep[name].logical_not(), 0.0)
    return keep, dict(sorted(values.items()))
