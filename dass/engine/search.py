"""`method: auto`: which score each layer is pruned by. Local errors only propose; a judge that sees the end decides.

Proposals are, in this order: one candidate for all layers, each; then mixes, in which every layer takes the candidate
that leaves the least local error behind the layers that were chosen before it; then changes of single layers of the
best so far, those first that a local error holds most likely. Each is one run through the layers beside which the
held-back windows go (`dass.engine.judge`). Local errors and the judge look at what a layer is after its re-fit, where
there is one. The best proposal is what is pruned by: same windows, same bytes.

A finished proposal is a file in the search's folder, complete or absent: a search that was killed goes on behind it.

S windows, W windows to judge by, T tokens.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dass.engine.choice import CHOICE, Choice, Proposal
from dass.engine.dense import LayerStatistics, make_from_statistics
from dass.engine.judge import Judge
from dass.engine.layerwise import Buffering, memory_advice
from dass.engine.made import write_parameters
from dass.engine.prefixes import Prefixes
from dass.engine.pruner import LayerwisePruner
from dass.engine.ranks import ALONE, Ranks
from dass.engine.trial import LOCAL_ERRORS, Rule, Trial
from dass.files import read_json, write_json
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.model.decoder import Decoder

_LOG = logging.getLogger(__name__)


class Search:
    """Proposes and judges; `choose` ends with the best proposal.

    The caller guards the folder: it must belong to this model, these tokens, this plan and this way of computing.
    """

    def __init__(
        self,
        decoder: Decoder,
        fitted_ST: Tensor,
        held_back_WT: Tensor,
        what: Plan,
        patterns: Sequence[Pattern],
        folder: Path,
        *,
        statistics: Callable[[int], LayerStatistics] | None = None,
        buffering: Buffering | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """See what an earlier search has finished; nothing is computed yet.

        Args:
            decoder: the model. Every layer is dense again when it is left.
            fitted_ST: windows that layers are pruned with.
            held_back_WT: windows that proposals are judged by.
            what: a plan with several candidates.
            patterns: each layer's.
            folder: of this search; made if missing.
            statistics: gives a layer's dense statistics, for `propagation: dense`.
            buffering: how hidden states are held.
            ranks: the processes that share the fitted windows; rank 0 writes, and its figures count.
        """
        self._decoder, self._fitted_ST, self._held_back_WT, self._plan = decoder, fitted_ST, held_back_WT, what
        self._patterns, self._folder, self._statistics = list(patterns), folder, statistics
        self._buffering, self._ranks = buffering or Buffering(), ranks
        self._candidates = what.candidates
        folder.mkdir(parents=True, exist_ok=True)
        self._finished = [Proposal(**read_json(path)) for path in sorted(folder.glob("proposal_*.json"))]
        self._proposals: list[Proposal] = []
        ranks.wait()  # nobody writes before everybody has looked

    def choose(self) -> Choice:
        """Judge every proposal that is not yet judged.

        Raises:
            NumericalError: activations or a proposal's predictions are NaN or infinite.
            InputError: a layer's work does not fit into memory.
        """
        layers = len(self._decoder)
        for number, score in enumerate(self._candidates):
            self._judged(str(score), [number] * layers)
        if len(self._candidates) > 1:
            for name, error in LOCAL_ERRORS.items():
                self._judged(name, error)
            self._change_layers()
        best = min(self._proposals, key=lambda each: each.kl)
        choice = Choice(
            self._candidates, self._proposals, best.name, len(self._held_back_WT), self._held_back_WT.numel()
        )
        if self._ranks.is_first:
            write_json(self._folder / CHOICE, choice.named)
        return choice

    def _change_layers(self) -> None:
        """Coordinate steps from the best proposal, most likely ones first, as far as the budget goes."""
        best = min(self._proposals, key=lambda each: each.kl)
        mixes = [each for each in self._proposals if each.errors is not None]
        adviser = best if best.errors is not None else min(mixes, key=lambda each: each.kl)
        assert adviser.errors is not None
        steps = _steps(best.layers, adviser.errors)
        known = {tuple(each.layers) for each in self._proposals}
        left = self._plan.auto_budget
        wanted = {layer for layer, _ in steps[:left]}
        with Prefixes(self._folder / "hidden", wanted, self._ranks, self._decoder.device) as prefixes:
            for layer, number in steps:
                if left == 0:
                    break
                changed = [*best.layers[:layer], number, *best.layers[layer + 1 :]]
                if tuple(changed) in known:
                    continue
                known.add(tuple(changed))
                proposal = self._judged(f"layer {layer} by {self._candidates[number]}", changed, prefixes, layer)
                left -= 1
                if proposal.kl < best.kl:
                    best = proposal
                    prefixes.drop_behind(layer)

    def _judged(self, name: str, rule: Rule, prefixes: Prefixes | None = None, changed: int | None = None) -> Proposal:
        """One proposal and its KL, from an earlier search or anew."""
        number = len(self._proposals)
        if number < len(self._finished):
            proposal = self._finished[number]
        else:
            proposal = self._run(name, rule, prefixes, changed)
            if self._ranks.is_first:
                write_json(self._folder / f"proposal_{number:04d}.json", asdict(proposal))
                _LOG.info("auto: %s: KL %.4g", name, proposal.kl)
        assert proposal.name == name, "the folder belongs to another search"
        self._proposals.append(proposal)
        return proposal

    def _run(self, name: str, rule: Rule, prefixes: Prefixes | None, changed: int | None) -> Proposal:
        with ExitStack() as stack:
            windows = stack.enter_context(closing(self._judge.windows()))
            trial = stack.enter_context(closing(Trial(windows, rule, self._candidates, self._decoder, self._ranks)))
            pruner = None
            if self._statistics is None:
                pruner = LayerwisePruner(
                    self._decoder,
                    self._fitted_ST,
                    self._plan,
                    patterns=self._patterns,
                    buffering=self._buffering,
                    ranks=self._ranks,
                )
                stack.callback(pruner.close)
            start = 0
            if prefixes is not None and changed is not None:
                start = prefixes.resume(pruner, windows, changed)
                trial.skip(rule, start)
            for index in range(start, len(self._decoder)):
                if prefixes is not None and changed is not None and index <= changed:
                    prefixes.keep(pruner, windows, index)
                self._layer(index, pruner, trial)
            kl = self._ranks.of_first(self._judge.kl(windows), self._decoder.device)
            return Proposal(name, trial.numbers, kl, trial.errors or None)

    def _layer(self, index: int, pruner: LayerwisePruner | None, trial: Trial) -> None:
        if pruner is not None:
            pruner.prune_layer(index, trial)
            return
        assert self._statistics is not None
        seen, plan, pattern = self._statistics(index), self._plan, self._patterns[index]
        with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
            made = trial.choose(
                layer, lambda score: make_from_statistics(self._decoder, index, seen, plan, pattern, score)
            )
            write_parameters(layer, made.keep, made.values)
            trial.follow(layer)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self._decoder, self._held_back_WT, self._buffering)


def _steps(layers: list[int], errors: list[list[float]]) -> list[tuple[int, int]]:
    """Changes of one layer, (layer, candidate): those first whose local error is least against the present one's."""
    found = []
    for layer, (present, of_layer) in enumerate(zip(layers, errors, strict=True)):
        for number, error in enumerate(of_layer):
            if error != of_layer[present]:  # equal ones come of equal masks
                found.append((error / of_layer[present] if of_layer[present] else math.inf, layer, number))
    return [(layer, number) for _, layer, number in sorted(found)]
