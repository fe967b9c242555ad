"""One proposal of `auto` on its way through the layers: each gets its candidate, by number or by least local error.

B windows of a batch, T tokens, H hidden.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dass.engine.judge import HeldBack
from dass.engine.made import Made, write_parameters
from dass.engine.ranks import Ranks
from dass.errors import NumericalError
from dass.method.methods import Score
from dass.model.decoder import Decoder

Outputs = Iterable[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
"""Of each batch, what the dense and the pruned layer make of it: (output, y of the MLPs), all (B, T, H)."""


def output_error(outputs: Outputs) -> float:
    """‖y_pruned − y_dense‖ / ‖y_dense‖ of the MLPs' output, over all tokens together."""
    sums = [0.0, 0.0]
    for (_, dense_BTH), (_, pruned_BTH) in outputs:
        sums[0] += (pruned_BTH.double() - dense_BTH.double()).square().sum().item()
        sums[1] += dense_BTH.double().square().sum().item()
    return math.sqrt(sums[0] / sums[1]) if sums[1] else 0.0


def stream_error(outputs: Outputs) -> float:
    """Mean over tokens of ‖h_pruned − h_dense‖ / ‖h_dense‖ of the layer's output h, the residual stream.

    A token of which the stream holds much, as massive activations make it, counts no more than any other.
    """
    total, tokens = 0.0, 0
    for (dense_BTH, _), (pruned_BTH, _) in outputs:
        dense_N = dense_BTH.double().norm(dim=-1).flatten()
        apart_N = (pruned_BTH.double() - dense_BTH.double()).norm(dim=-1).flatten()
        total += (apart_N / dense_N.clamp_min(torch.finfo(torch.float64).tiny)).sum().item()
        tokens += len(dense_N)
    return total / tokens


LOCAL_ERRORS: Mapping[str, Callable[[Outputs], float]] = {
    "mix by output error": output_error,
    "mix by stream error": stream_error,
}


Rule = Sequence[int] | Callable[[Outputs], float]
"""How a proposal gives each layer its candidate: by number, or by least local error."""


class Trial:
    """One proposal on its way through the layers, beside a pruner: a `Companion`.

    Attributes:
        numbers: of each layer so far, which candidate it has.
        errors: where the rule is a local error: layer -> candidate -> its error.
    """

    def __init__(self, windows: HeldBack, rule: Rule, candidates: list[Score], decoder: Decoder, ranks: Ranks) -> None:
        self.numbers: list[int] = []
        self.errors: list[list[float]] = []
        self._windows, self._rule, self._candidates = windows, rule, candidates
        self._decoder, self._ranks = decoder, ranks
        self._dense: dict[str, Tensor] = {}  # of the layer that is open
        self._layer: nn.Module | None = None

    def skip(self, rule: Rule, layers: int) -> None:
        """Start behind some layers, whose hidden states are known."""
        assert not callable(rule)
        self.numbers = list(rule[:layers])

    def choose(self, layer: nn.Module, make: Callable[[Score], Made]) -> Made:
        """What the rule gives the due layer."""
        self._layer = layer
        self._dense = {name: value.detach().clone() for name, value in layer.named_parameters()}
        self._windows.enter(layer)
        if not callable(self._rule):
            number = self._rule[len(self.numbers)]
            self.numbers.append(number)
            return make(self._candidates[number])
        dense = list(self._windows.outputs())
        best: Made | None = None
        errors: list[float] = []
        for score in self._candidates:
            made = make(score)
            write_parameters(layer, made.keep, made.values)
            error = self._rule(zip(dense, self._windows.outputs(), strict=True))
            self._restore()
            error = self._ranks.of_first(error, self._decoder.device)
            if not math.isfinite(error):
                raise NumericalError(
                    f"{self._decoder.layer_name(len(self.numbers))}: pruned by {score} it computes NaN or infinity on "
                    "the windows that auto judges by. Compute in a wider type (engine.dtype: float32)."
                )
            if best is None or error < min(errors):
                best = made
            errors.append(error)
        assert best is not None
        self.numbers.append(errors.index(min(errors)))
        self.errors.append(errors)
        return best

    def follow(self, layer: nn.Module) -> None:
        """Send the held-back windows through the pruned layer, and make it dense again."""
        self._windows.leave()
        self.close()

    def close(self) -> None:
        """Leave no layer as a trial had it, whatever has ended the trial."""
        self._restore()
        self._layer, self._dense = None, {}

    def _restore(self) -> None:
        if self._layer is not None:
            with torch.no_grad():
                for name, value in self._layer.named_parameters():
                    if not value.is_meta:  # a streamed layer that was left
                        value.copy_(self._dense[name])
