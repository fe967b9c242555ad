"""The layer-wise engine: one buffer of hidden states, pushed through the decoder a layer at a time.

For each layer: (1) dense statistics on the calibration hidden states, (2) masks from the dense weights, and new values
for kept weights where the plan wants them, (3) removed weights become +0.0, (4) the pruned layer's outputs replace the
buffer and are the next layer's inputs. `reconstruct-block` takes a second buffer, of the dense model's hidden states.

Axes: S windows, B windows of a batch, T tokens a window, H hidden, I intermediate.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dass.engine.block import refit_block
from dass.engine.fits import check_fits
from dass.engine.layer_report import LayerResult, layer_report
from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice, wanted_by
from dass.engine.made import Companion, Made, joined, write_parameters
from dass.engine.ranks import ALONE, Ranks
from dass.engine.refit import refit_mlps
from dass.errors import InputError
from dass.method.fit_error import FitErrors
from dass.method.methods import Score
from dass.method.mlp import prune_mlp
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.statistics import MlpStatistics
from dass.model.decoder import Decoder
from dass.model.glu import parameters_of
from dass.model.layer import LayerRunner


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
