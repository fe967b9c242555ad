"""The judge of `auto`: how far a pruned model's predictions lie from the dense one's, on windows nothing is fitted to.

Those windows go through the layers beside the ones that prune, so that no mask has to be kept to be judged, and a model
larger than memory is read once for pruning and judging.

W windows, B windows of a batch, T tokens of a window, H hidden size, N tokens of a batch, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice
from dass.errors import NumericalError
from dass.measures.divergence import token_kl
from dass.measures.halves import Halves
from dass.measures.losses import tokens_at_once
from dass.model.decoder import Decoder
from dass.model.layer import LayerRunner


class HeldBack:
    """The held-back windows on their way through the layers, behind whatever has become of each.

    Every process of several has all of them: they are few. For each layer: `enter` while it is dense, `outputs` as
    often as is wanted, `leave` when it is what it is to be.
    """

    def __init__(self, decoder: Decoder, windows_WT: Tensor, buffering: Buffering | None) -> None:
        self._decoder, self._windows_WT = decoder, windows_WT
        self._walk = LayerwisePass(decoder, windows_WT, buffering)
        self._runner: LayerRunner | None = None

    def enter(self, layer: nn.Module) -> None:
        """Do what pruning does not change, the attention, of the due layer."""
        self._runner = self._walk.runner(layer)
        if self._runner.splits:
            for rows, state_BTH, call, _ in self._walk.batches():
                self._walk.hidden.write(rows, self._runner.attention_half(state_BTH, call))

    def outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the layer as it is now, batch by batch: its output, and its MLPs' output y, both (B, T, H)."""
        assert self._runner is not None
        for _, state_BTH, call, _ in self._walk.batches():
            yield self._runner.advance(state_BTH, call)

    def leave(self) -> None:
        """Go on behind the layer as it is now."""
        assert self._runner is not None
        for rows, state_BTH, call, _ in self._walk.batches():
            self._walk.hidden.write(rows, self._runner.advance(state_BTH, call)[0])
        self._walk.layer += 1

    def ends(self) -> Iterator[Any]:
        """The body's output of each batch, behind the last layer. Call it where `Decoder.outside` is open."""
        for rows, state_BTH in self._walk.states():
            yield self._decoder.behind_layers(self._windows_WT[rows].to(self._decoder.device), state_BTH)

    @property
    def carries_state(self) -> bool:
        """Whether the layers that are due need more of those in front than hidden states."""
        return self._walk.carries_state

    @property
    def nbytes(self) -> int:
        """Of the hidden states."""
        return self._walk.hidden.nbytes

    def save(self, path: Path) -> None:
        """Write the hidden states that enter the due layer."""
        self._walk.hidden.save(path)

    def resume_at(self, layer: int, path: Path) -> None:
        """Go on at `layer` with hidden states written by `save` before it."""
        self._walk.hidden.load(path)
        self._walk.layer = layer

    def close(self) -> None:
        """Give back the buffer."""
        self._walk.hidden.close()


class Judge:
    """KL(dense ‖ pruned) in nats, the mean over every token of the held-back windows.

    Memory: what the head takes of the dense model, (W, T, H) on the host, besides the windows on their way. Logits are
    computed for a slice of tokens at a time, the dense ones anew for each proposal.
    """

    def __init__(self, decoder: Decoder, windows_WT: Tensor, buffering: Buffering | None) -> None:
        """Send the windows through the dense model."""
        self._decoder, self._windows_WT, self._buffering = decoder, windows_WT, buffering
        dense = self.windows()
        for index in range(len(decoder)):
            with memory_advice(), torch.no_grad(), decoder.layer(index) as layer:
                dense.enter(layer)
                dense.leave()
        with memory_advice(), torch.no_grad(), decoder.outside():
            self._dense = [body.last_hidden_state.cpu() for body in dense.ends()]
        dense.close()

    def windows(self) -> HeldBack:
        """The held-back windows in front of the first layer."""
        return HeldBack(self._decoder, self._windows_WT, self._buffering)

    def kl(self, pruned: HeldBack) -> float:
        """How far the windows' predictions have moved, now that they are behind the last layer.

        Raises:
            NumericalError: it is NaN or infinite.
        """
        model, total = self._decoder.model, 0.0
        step = tokens_at_once(model.config.get_text_config().vocab_size)
        with memory_advice(), torch.no_grad(), self._decoder.outside():
            for body, dense_BTH in zip(pruned.ends(), self._dense, strict=True):
                head = Halves(model, model.base_model, type(body))
                dense_NH = dense_BTH.to(self._decoder.device).flatten(0, 1)
                for dense_nH, pruned_nH in zip(
                    dense_NH.split(step), body.last_hidden_state.flatten(0, 1).split(step), strict=True
                ):
                    kl_n = token_kl(head.log_probabilities(dense_nH), head.log_probabilities(pruned_nH))
                    total += kl_n.sum(dtype=torch.float64).item()
        kl = total / self._windows_WT.numel()
        if not kl < float("inf"):
            raise NumericalError(
                "The pruned model computes NaN or infinity on the windows that auto judges by. Compute in a wider type "
                "(engine.dtype: float32), or name a method."
            )
        return kl
