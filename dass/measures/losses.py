"""The loss of every token that has a token before it in its window.

W windows, L tokens in a window, V vocabulary, N tokens scored, n tokens of a slice. The first token of a window is
given, not predicted, so a window scores L − 1 tokens and the windows score N = W · (L − 1). This is the definition
behind the tables of arXiv 2405.01943: windows do not overlap and nothing is carried from one to the next.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dass.errors import InputError, NumericalError
from dass.measures.halves import Halves, cross_entropies, halves
from dass.measures.products import fast_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("dass")

# Of a batch. On a CPU fewer make small products and read the head more often; more leave the cache.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
# Of a slice, or of a batch whose logits cannot be had in slices. They are by far the largest tensor; but each slice
# reads the whole head once more, so small ones are slow.
_LOGITS_AT_ONCE = 2**27


@dataclass(frozen=True)
class Slice:
    """Some of the N scored tokens: as many as have room for all their logits.

    Attributes:
        start: how many of the N tokens come before them.
        logits_nV: of each token that could have come, in the type that the model gives them.
        losses_n: cross entropy of the tokens that came, in nats, float32.
        hidden_nH: what the head was given, in the model's type; None where the model has no halves.
        parts: the model's halves.
    """

    start: int
    logits_nV: Tensor
    losses_n: Tensor
    hidden_nH: Tensor | None
    parts: Halves | None


@torch.inference_mode()
def token_losses(
    model: "PreTrainedModel",
    windows_WL: Tensor,
    batch_tokens: int | None = None,
    on_batch: Callable[[int], object] | None = None,
    on_slice: Callable[[Slice], object] | None = None,
    parts: Halves | None = None,
) -> Tensor:
    """Cross entropy in nats of every predicted token, float32 (W, L − 1), on the CPU.

    At no time more logits are held than those of one slice, unless the model's halves cannot be told apart: then
    batches are as small as their logits make them, which is said in one line.

    Args:
        model: a causal LM in eval mode, on the device to compute on. Not changed.
        windows_WL: token ids, LongTensor (windows, length ≥ 2).
        batch_tokens: tokens that the body takes at once; None chooses. A batch holds whole windows, at least one.
        on_batch: called after each batch with the number of windows it held.
        on_slice: called with each slice in turn; equal windows and batches give equal slices.
        parts: the model's halves where they are known; None finds them.

    Raises:
        InputError: there is nothing to predict.
        NumericalError: a loss is NaN or infinite. The message names the window.
    """
    windows, length = windows_WL.shape
    if windows == 0 or length < 2:
        raise InputError(
            f"The windows are {windows} × {length} tokens: expected at least 1 window of at least 2 tokens."
        )
    device = model.device if parts is None else parts.device
    parts = parts or halves(model, windows_WL[0].to(device))
    vocabulary = model.config.get_text_config().vocab_size
    kind = "cpu" if device.type == "cpu" else "cuda"
    rows = max(1, (batch_tokens or _BATCH_TOKENS[kind]) // length)
    if parts is None:
        logger.info("%s: no body and head found that give its logits; small batches.", type(model).__name__)
        rows = max(1, min(rows, _LOGITS_AT_ONCE // vocabulary // length))
    step = tokens_at_once(vocabulary)
    losses_WL = torch.empty(windows, length - 1, dtype=torch.float32)
    for start in range(0, windows, rows):
        batch_WL = windows_WL[start : start + rows].to(device)
        found: list[Tensor] = []
        with fast_products():
            for piece in _slices(model, parts, batch_WL, start, step):
                found.append(piece.losses_n)
                if on_slice is not None:
                    on_slice(piece)
        batch = losses_WL[start : start + rows]
        batch.copy_(torch.cat(found).view(-1, length - 1))
        _check_finite(batch, start, windows)
        if on_batch is not None:
            on_batch(len(batch_WL))
    return losses_WL


def tokens_at_once(vocabulary: int) -> int:
    """Tokens of a slice: all their logits have room."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)


def mean_loss(
    model: "PreTrainedModel",
    windows_WL: Tensor,
    batch_tokens: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> float:
    """Mean of `token_losses`, summed in float64; arguments and errors are the same."""
    return mean(token_losses(model, windows_WL, batch_tokens, on_batch))


def mean(losses: Tensor) -> float:
    """Mean of token losses, summed in float64."""
    return losses.mean(dtype=torch.float64).item()


def _slices(model: "PreTrainedModel", parts: Halves | None, batch_WL: Tensor, start: int, step: int) -> Iterator[Slice]:
    """Scored tokens of the windows from `start` on, `step` at a time."""
    targets_N = batch_WL[:, 1:].flatten()
    before = start * (batch_WL.shape[1] - 1)
    if parts is None:
        logits_NV = model(input_ids=batch_WL, use_cache=False).logits[:, :-1].flatten(0, 1)
        for offset in range(0, len(targets_N), step):
            part = slice(offset, offset + step)
            yield _slice(before + offset, logits_NV[part], targets_N[part])
        return
    hidden_NH = parts.hidden(batch_WL, start)[:, :-1].flatten(0, 1)
    for offset in range(0, len(targets_N), step):
        part = slice(offset, offset + step)
        yield _slice(before + offset, parts.logits(hidden_NH[part]), targets_N[part], hidden_NH[part], parts)


def _slice(
    start: int, logits_nV: Tensor, targets_n: Tensor, hidden_nH: Tensor | None = None, parts: Halves | None = None
) -> Slice:
    return Slice(start, logits_nV, cross_entropies(logits_nV, targets_n), hidden_nH, parts)


def _check_finite(losses_WL: Tensor, start: int, windows: int) -> None:
    for offset, loss in enumerate(losses_WL.sum(1, dtype=torch.float64).tolist()):
        if not math.isfinite(loss):
            raise NumericalError(
                f"The loss of window {start + offset} of {windows} is {loss}: the model computes NaN or infinity."
            )
