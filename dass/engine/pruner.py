"""The layer-wise engine: one buffer of hidden states, pushed through the decoder a layer at a time.

For each layer: (1) dense statistics on the calibration hidden states, (2) masks from the dense weights, and new values
for kept weights where the plan wants them, (3) removed weights become +0.0, (4) the pruned layer's outputs replace the
buffer and are the next layer's inputs. `reconstruct-block` takes a second buffer, of the dense model's hidden states.

Axes: S windows, B windows of a batch, T tokens a window, H hidden, I intermediate.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dass.engine.block import refit_block
from dass.engine.fits import check_fits
from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice, wanted_by
from dass.engine.ranks import ALONE, Ranks
from dass.engine.refit import refit_mlps
from dass.errors import InputError
from dass.masks.detect import runs_on_sparse_tensor_cores
from dass.method.fit_error import FitErrors
from dass.method.mask import zero_removed_
from dass.method.methods import PROJECTIONS, Method, Projection, Score
from dass.method.mlp import PrunedMlp, prune_mlp
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.statistics import MlpStatistics
from dass.model.decoder import Decoder
from dass.model.glu import GluMlp, parameters_of
from dass.model.layer import LayerRunner

ENGINE_VERSION = "4"
"""Changes whenever the same inputs may give other masks. Part of every fingerprint.

4: wide Gram matrices are summed by blocks, whose products a library may round otherwise.
"""


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


@dataclass(frozen=True)
class Made:
    """What one score makes of a layer.

    Attributes:
        score: that score.
        pruned: of each MLP.
        keep: masks by parameter name inside the layer.
        values: new values of parameters whose kept weights changed, and of tuned norms, likewise.
        errors: of the re-fit.
    """

    score: Score
    pruned: list[PrunedMlp]
    keep: dict[str, Tensor]
    values: dict[str, Tensor]
    errors: FitErrors


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
            InputError: tokens of a wrong shape or type, too few to hold some back, or a model that `what` cannot prune.
        """
        check_fits(decoder, what)
        held_back = what.validation_windows(len(input_ids_ST))
        if what.trains and torch.is_inference_mode_enabled():
            raise InputError(
                f'update is "{what.update}" under torch.inference_mode: it needs gradients. Prune outside it.'
            )
        if ranks.size > 1 and what.update == "reconstruct-mlp":
            raise InputError(
                f'update is "reconstruct-mlp" and processes {ranks.size}: expected 1, or update: reconstruct.'
            )
        self._decoder, self._plan, self._ranks = decoder, what, ranks
        self._patterns = list(patterns) if patterns is not None else [what.pattern] * len(decoder)
        self._scores = scores
        self._pass = LayerwisePass(decoder, input_ids_ST, buffering, ranks, held_back)
        self._dense: LayerwisePass | None = None  # the same windows on their way through the dense model
        if what.update == "reconstruct-block":
            self._dense = LayerwisePass(decoder, input_ids_ST, buffering, ranks, held_back)

    def close(self) -> None:
        """Give back the buffers, on disk too."""
        for walk in self._passes:
            walk.hidden.close()

    @property
    def carries_state(self) -> bool:
        """Whether the layers that are due need more of those in front than hidden states."""
        return self._pass.carries_state

    @property
    def hidden_bytes(self) -> int:
        """Of this rank's hidden states."""
        return sum(walk.hidden.nbytes for walk in self._passes)

    @property
    def next_layer(self) -> int:
        """The layer that is due."""
        return self._pass.layer

    def save_hidden(self, path: Path) -> None:
        """Write this rank's hidden states, the inputs of `next_layer`; those of the dense model in a file beside it."""
        for walk in reversed(self._passes):  # the file of this name comes last: it says that both are there
            walk.hidden.save(path if walk is self._pass else dense_beside(path))

    def resume_at(self, layer: int, path: Path) -> None:
        """Go on at `layer` with hidden states written by `save_hidden` before it."""
        for walk in self._passes:
            walk.hidden.load(path if walk is self._pass else dense_beside(path))
            walk.layer = layer

    @property
    def _passes(self) -> list[LayerwisePass]:
        return [self._pass] if self._dense is None else [self._pass, self._dense]

    def prune_layer(self, index: int, companion: Companion | None = None) -> LayerResult:
        """Collect, mask, set to zero and propagate one layer.

        Args:
            index: the due layer.
            companion: chooses the layer's score in place of the plan.

        Raises:
            NumericalError: the layer's activations are NaN or infinite.
        """
        assert index == self.next_layer, "layers are pruned in order, each once"
        began, here = time.perf_counter(), self._plan.of_layer(index)
        with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
            runner = self._pass.runner(layer)
            if self._dense is not None:
                if here.only:
                    self._check_trainable(runner)
                self._dense.advance(layer)
            collected = self._pass.collect(runner, wanted_by(here))
            statistics = collected.statistics
            stored = self._decoder.stored_weights(index, parameters_of(runner.mlps))
            dense = [mlp.views(stored) for mlp in runner.mlps]
            pattern = self._patterns[index]

            def make(score: Score) -> Made:
                what, errors = here.scored(score), FitErrors()
                pruned = [
                    prune_mlp(weights, seen, what, pattern) for weights, seen in zip(dense, statistics, strict=True)
                ]
                if what.only and what.update != "none":
                    pruned, errors = refit_mlps(self._pass, runner, dense, pruned, statistics, what)
                keep, values = joined(runner.mlps, pruned, stored)
                if self._dense is not None and what.only:
                    values, errors = self._refit_block(self._dense, runner, keep, values, statistics)
                return Made(score, pruned, keep, values, errors)

            made = companion.choose(layer, make) if companion is not None else make(self._score(index))
            write_parameters(layer, made.keep, made.values)
            error = self._pass.propagate(runner, collected.dense_outputs)
            if companion is not None:
                companion.follow(layer)
        self._pass.layer += 1
        prefix = self._decoder.layer_name(index)
        dtype = next(iter(stored.values())).dtype
        report = replace(
            layer_report(index, pattern if here.only else None, runner.mlps, made, statistics, dtype),
            relative_error=error,
            fitted_error=made.errors.fitted.relative,
            held_back_error=made.errors.held_back.relative,
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
            if self._dense is not None:
                self._dense.advance(layer)
            if runner.splits:
                for rows, hidden_BTH, call, _ in self._pass.batches():
                    self._pass.hidden.write(rows, runner.attention_half(hidden_BTH, call))
            write_parameters(layer, keep, weights, prefix)
            self._pass.propagate(runner, [])
        self._pass.layer += 1

    def _refit_block(
        self,
        dense: LayerwisePass,
        runner: LayerRunner,
        keep: Mapping[str, Tensor],
        values: dict[str, Tensor],
        statistics: Sequence[MlpStatistics],
    ) -> tuple[dict[str, Tensor], FitErrors]:
        """Train the kept weights of all the layer's MLPs, those of starved experts aside, and norms where asked for."""
        moves = {name: keep[name].clone() for name in values}
        for mlp, seen in zip(runner.mlps, statistics, strict=True):
            for place in mlp.places.values() if seen.starved else ():
                if place.parameter in moves:  # it is not where all its experts starve
                    moves[place.parameter][place.at] = False
        if self._plan.tune_norms:
            norms = self._decoder.stored_weights(self.next_layer, runner.norms)
            values = {**values, **{name: norm.clone() for name, norm in norms.items()}}
            moves |= {name: torch.ones_like(norm, dtype=torch.bool) for name, norm in norms.items()}
        if not any(bool(each.any()) for each in moves.values()):
            return values, FitErrors()  # every expert starves
        found = refit_block(self._pass, dense, runner, values, moves, self._plan.epochs)
        return found.values, found.errors

    def _check_trainable(self, runner: LayerRunner) -> None:
        name = self._decoder.layer_name(self.next_layer)
        if not runner.splits:
            raise InputError(
                f"{name} does not run as attention and MLP one behind the other: "
                'update "reconstruct-block" trains the second with the first held. Use update: reconstruct-mlp.'
            )
        if self._plan.tune_norms and not runner.norms:
            raise InputError(f"tune_norms is true, and {name} has no norm with weights around its MLP. Use false.")


def dense_beside(path: Path) -> Path:
    """The file of the dense model's hidden states beside the one of the pruned model's."""
    return path.with_name(f"dense_{path.name}")


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
    for name, value in values.items():
        layer.get_parameter(name.removeprefix(prefix)).detach().copy_(value)
    for name, mask in keep.items():
        parameter = layer.get_parameter(name.removeprefix(prefix))
        zero_removed_(parameter, mask.to(parameter.device))


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


def joined(
    mlps: Sequence[GluMlp], pruned: Sequence[PrunedMlp], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks, and the new values where there are any, by parameter name inside the layer.

    A parameter that holds several MLPs' matrices gets one mask; matrices that were not updated keep the stored values.
    """
    keep: dict[str, Tensor] = {}
    updated = {mlp.places[name].parameter for mlp, each in zip(mlps, pruned, strict=True) for name in each.weights}
    values = {name: stored[name].clone() for name in updated}
    for mlp, each in zip(mlps, pruned, strict=True):
        for projection, place in mlp.places.items():
            if not place.at:  # the whole parameter: nothing to join
                keep[place.parameter] = each.keep[projection]
            else:
                if place.parameter not in keep:
                    keep[place.parameter] = torch.ones_like(stored[place.parameter], dtype=torch.bool)
                keep[place.parameter][place.at] = each.keep[projection]
            if projection in each.weights:
                values[place.parameter][place.at] = each.weights[projection]
    for name, value in values.items():
        zero_removed_(value, keep[name])
    return keep, dict(sorted(values.items()))
