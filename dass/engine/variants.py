"""Several pruned variants of one model, judged beside each other: no variant is ever in memory as a whole.

Held-out windows go through the layers once for each variant. Every layer is read once for all of them, becomes each
variant's in turn, and is dense again when it is left. At the end the dense model's predictions are made once for all.

W windows, B windows of a batch, T tokens of a window, H hidden size, n tokens of a slice, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice
from dass.engine.made import write_parameters
from dass.errors import InputError, NumericalError
from dass.measures.divergence import largest, token_kl
from dass.measures.halves import Halves, rows_at_once
from dass.measures.losses import tokens_at_once
from dass.model.decoder import Decoder


@dataclass(frozen=True)
class Changed:
    """What a variant makes of one layer.

    Attributes:
        keep: masks by parameter name inside the layer, True = kept.
        values: new values of parameters, likewise.
    """

    keep: Mapping[str, Tensor]
    values: Mapping[str, Tensor]


Variant = Callable[[int], Changed | None]
"""What becomes of a layer, by its number; None leaves it dense."""


@dataclass(frozen=True)
class Moved:
    """What a variant predicts, over every token of the windows that has one before it.

    Attributes:
        kl: mean KL(dense ‖ variant) in nats.
        loss: mean cross entropy in nats of the tokens that came.
        top1_agreement: share of tokens for which both models hold the same one most likely.
    """

    kl: float
    loss: float
    top1_agreement: float


class Variants:
    """Judges variants of one model on some windows.

    Memory: hidden states (W, T, H) for each variant that is judged at once, those of the dense model in front of the
    head, and the predictions of a slice of tokens four times.

    Attributes:
        dense_loss: mean cross entropy of the dense model in nats.
    """

    def __init__(self, decoder: Decoder, windows_WT: Tensor, buffering: Buffering | None = None) -> None:
        """Send the windows through the dense model.

        Args:
            decoder: the model. Every layer is dense again when it is left.
            windows_WT: token ids, LongTensor (W, T), of at least 2 tokens.
            buffering: how hidden states are held.

        Raises:
            InputError: windows with nothing to predict, or a model that cannot be run layer by layer.
        """
        if windows_WT.dim() != 2 or windows_WT.shape[1] < 2:
            raise InputError(f"The windows have shape {tuple(windows_WT.shape)}: expected (W, T) of 2 or more tokens.")
        self._decoder, self._windows_WT, self._buffering = decoder, windows_WT, buffering
        self._dense: list[Tensor] = []  # what the head takes, a batch each
        total = 0.0
        with self._opened() as walk:
            for index in range(len(decoder)):
                self._advance(index, [(walk, _dense)])
            with memory_advice(), torch.no_grad(), decoder.outside():
                for rows, body in self._ends(walk):
                    head, targets_N = self._head(body), self._targets(rows)
                    hidden_NH = _scored(body.last_hidden_state)
                    self._dense.append(hidden_NH.cpu())
                    for hidden_nH, targets_n in zip(
                        hidden_NH.split(self._step), targets_N.split(self._step), strict=True
                    ):
                        found_n = head.log_probabilities(hidden_nH).gather(1, targets_n[:, None])
                        total -= found_n.sum(dtype=torch.float64).item()
        self.dense_loss = total / self._tokens

    def judge(self, variants: Sequence[Variant], first: int = 0) -> list[Moved]:
        """What each of these predicts.

        Args:
            variants: at least one. Each is asked once for every layer from `first` on, in order.
            first: no variant changes a layer in front of this one, so the windows go there once for all.

        Raises:
            NumericalError: a variant's predictions are NaN or infinite; the message gives its place.
        """
        with ExitStack() as open_walks:
            front = open_walks.enter_context(self._opened())
            self._walk_dense(front, first)
            walks = [front]
            for _ in variants[1:]:
                walk = open_walks.enter_context(self._opened())
                if front.carries_state:  # beside hidden states, which are all that can be copied
                    self._walk_dense(walk, first)
                else:
                    for rows, states_BTH in front.states():
                        walk.hidden.write(rows, states_BTH)
                    walk.layer = first
                walks.append(walk)
            for index in range(first, len(self._decoder)):
                self._advance(index, list(zip(walks, variants, strict=True)))
            return self._compare(walks)

    def _walk_dense(self, walk: LayerwisePass, layers: int) -> None:
        for index in range(layers):
            self._advance(index, [(walk, _dense)])

    def _advance(self, index: int, pairs: Sequence[tuple[LayerwisePass, Variant]]) -> None:
        """Send each variant's windows through what it makes of one layer."""
        with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
            for walk, variant in pairs:
                with _changed(layer, variant(index)):
                    walk.advance(layer)

    def _compare(self, walks: Sequence[LayerwisePass]) -> list[Moved]:
        sums = torch.zeros(len(walks), 3, dtype=torch.float64)
        with memory_advice(), torch.no_grad(), self._decoder.outside():
            ends = zip(*(self._ends(walk) for walk in walks), strict=True)
            for dense_NH, batch in zip(self._dense, ends, strict=True):
                rows, body = batch[0]
                head = self._head(body)
                targets_N = self._targets(rows)
                pruned = [_scored(each.last_hidden_state) for _, each in batch]
                start = 0
                for dense_nH in dense_NH.to(self._decoder.device).split(self._step):
                    part = slice(start, start + len(dense_nH))
                    dense = _Predicted.of(head.logits(dense_nH))
                    for which, hidden_NH in enumerate(pruned):
                        moved_3n = dense.against(head.logits(hidden_NH[part]), targets_N[part])
                        sums[which] += moved_3n.sum(1, dtype=torch.float64).cpu()
                    start = part.stop
        for which, of_variant in enumerate(sums):
            if not of_variant.isfinite().all():
                raise NumericalError(
                    f"Variant {which + 1} of {len(walks)} computes NaN or infinity on the windows. Compute in a wider "
                    "type (engine.dtype: float32)."
                )
        return [Moved(*(value / self._tokens for value in of_variant.tolist())) for of_variant in sums]

    def _ends(self, walk: LayerwisePass) -> Iterator[tuple[slice, Any]]:
        for rows, states_BTH in walk.states():
            yield rows, self._decoder.behind_layers(self._windows_WT[rows].to(self._decoder.device), states_BTH)

    def _head(self, body: Any) -> Halves:
        model = self._decoder.model
        return Halves(model, model.base_model, type(body))

    def _targets(self, rows: slice) -> Tensor:
        return self._windows_WT[rows, 1:].flatten().to(self._decoder.device)

    @property
    def _tokens(self) -> int:
        windows, length = self._windows_WT.shape
        return windows * (length - 1)

    @property
    def _step(self) -> int:
        # Four tensors of this size are held at once, where evaluation holds one.
        return max(1, tokens_at_once(self._decoder.model.config.get_text_config().vocab_size) // 4)

    @contextmanager
    def _opened(self) -> Iterator[LayerwisePass]:
        walk = LayerwisePass(self._decoder, self._windows_WT, self._buffering)
        with walk.hidden:
            yield walk


@dataclass(frozen=True)
class _Predicted:
    """What the dense model says of the tokens of a slice.

    Attributes:
        log_nV: log-probabilities, float32.
        chosen_n: ids of the most likely ones.
    """

    log_nV: Tensor
    chosen_n: Tensor

    @classmethod
    def of(cls, logits_nV: Tensor) -> "_Predicted":
        log_nV = torch.empty_like(logits_nV, dtype=torch.float32)
        for rows in _rows(log_nV):
            torch.log_softmax(log_nV[rows].copy_(logits_nV[rows]), -1, out=log_nV[rows])
        return cls(log_nV, largest(log_nV))

    def against(self, logits_nV: Tensor, targets_n: Tensor) -> Tensor:
        """Of each token the divergence, the loss, and whether the most likely token is the same: float32 (3, n).

        A few rows at a time, in memory that stays in the cache: whole tensors of this size take longer to get than to
        use.

        Args:
            logits_nV: a variant's logits, in the model's type.
            targets_n: ids of the tokens that came.
        """
        found_3n = self.log_nV.new_empty(3, len(targets_n))
        for rows in _rows(self.log_nV):
            pruned_rV = logits_nV[rows].float()
            torch.log_softmax(pruned_rV, -1, out=pruned_rV)
            found_3n[1, rows] = -pruned_rV.gather(1, targets_n[rows, None])[:, 0]
            found_3n[2, rows] = largest(pruned_rV) == self.chosen_n[rows]
            found_3n[0, rows] = token_kl(self.log_nV[rows].clone(), pruned_rV)
        return found_3n


def _rows(values_nV: Tensor) -> Iterator[slice]:
    """A few rows at a time."""
    step = rows_at_once(values_nV)
    return (slice(start, start + step) for start in range(0, len(values_nV), step))


def _dense(_: int) -> None:
    """The variant that leaves every layer as it is."""


def _scored(states_BTH: Tensor) -> Tensor:
    """Those of the tokens behind which one came, (N, H)."""
    return states_BTH[:, :-1].flatten(0, 1)


@contextmanager
def _changed(layer: nn.Module, what: Changed | None) -> Iterator[None]:
    """A layer is what a variant makes of it while this is open, and dense again afterwards."""
    if what is None:
        yield
        return
    names = {*what.keep, *what.values}
    dense = {name: layer.get_parameter(name).detach().clone() for name in names}
    try:
        write_parameters(layer, what.keep, what.values)
        yield
    finally:
        for name, value in dense.items():
            layer.get_parameter(name).detach().copy_(value)
