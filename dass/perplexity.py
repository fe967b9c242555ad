"""Perplexity: exp of the mean loss of every token that has a token before it in its window.

W windows, L tokens in a window, V vocabulary, N tokens scored. The first token of a window is given, not predicted,
so a window scores L − 1 tokens and the windows score N = W · (L − 1). This is the definition behind the tables of
arXiv 2405.01943: windows do not overlap and nothing is carried from one to the next.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from dass.errors import InputError, NumericalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits are by far the largest tensor (Gemma: V = 262144). Entries alive at once, before and after float32.
_LOGITS_AT_ONCE = 2**27
_FLOAT32_LOGITS_AT_ONCE = 2**25
_BATCH_TOKENS = 4096


@torch.inference_mode()
def mean_loss(
    model: "PreTrainedModel",
    windows_WL: torch.Tensor,
    batch_tokens: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> float:
    """Mean cross entropy in nats over the N predicted tokens, summed in float64.

    Args:
        model: a causal LM in eval mode, on the device to compute on. Not changed.
        windows_WL: token ids, LongTensor (windows, length ≥ 2).
        batch_tokens: tokens computed at once; None chooses. A batch holds whole windows, at least one, and
            fewer than asked for where their logits would take too much memory.
        on_batch: called after each batch with the number of windows it held.

    Raises:
        InputError: there is nothing to predict.
        NumericalError: a loss is NaN or infinite. The message names the window.
    """
    windows, length = windows_WL.shape
    if windows == 0 or length < 2:
        raise InputError(
            f"The windows are {windows} × {length} tokens: expected at least 1 window of at least 2 tokens."
        )
    affordable = _LOGITS_AT_ONCE // model.config.get_text_config().vocab_size
    rows = max(1, min(batch_tokens or _BATCH_TOKENS, affordable) // length)
    total = 0.0
    for start in range(0, windows, rows):
        batch_WL = windows_WL[start : start + rows].to(model.device)
        logits_WLV = model(input_ids=batch_WL, use_cache=False).logits
        for offset in range(len(batch_WL)):
            loss = _summed_loss(logits_WLV[offset, :-1], batch_WL[offset, 1:])
            if not math.isfinite(loss):
                raise NumericalError(
                    f"The loss of window {start + offset} of {windows} is {loss}: the model computes NaN or infinity."
                )
            total += loss
        if on_batch is not None:
            on_batch(len(batch_WL))
    return total / (windows * (length - 1))


def _summed_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> float:
    """Cross entropy of each token in float32, their sum in float64."""
    step = max(1, _FLOAT32_LOGITS_AT_ONCE // logits_NV.shape[1])
    total = torch.zeros((), dtype=torch.float64)
    for logits, targets in zip(logits_NV.split(step), targets_N.split(step), strict=True):
        losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        total += losses.sum(dtype=torch.float64).cpu()
    return total.item()


def perplexity(loss: float) -> float:
    """exp(loss), for a mean loss in nats.

    Raises:
        NumericalError: the loss is so large that its exponential is not a number a float can hold.
    """
    try:
        return math.exp(loss)
    except OverflowError:
        raise NumericalError(
            f"The mean loss is {loss:g} nats a token: its perplexity is too large to write down."
        ) from None
