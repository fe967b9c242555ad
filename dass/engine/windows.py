"""Calibration windows as a caller may give them, checked before any work."""

from typing import Any

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method.plan import Plan
from dass.model.decoder import Decoder

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_tokens(input_ids: Any) -> Tensor:
    """Refuse what are no windows of token ids.

    Raises:
        InputError: no tensor, or one of another shape or type than whole numbers (samples, length).
    """
    expected = "expected a LongTensor of shape (samples, length)"
    if not isinstance(input_ids, Tensor):
        inside = ': pass its ["input_ids"] as a tensor' if hasattr(input_ids, "keys") else ""
        raise InputError(f"input_ids is a {type(input_ids).__name__}: {expected}{inside}.")
    if input_ids.dim() != 2 or input_ids.dtype not in _WHOLE or 0 in input_ids.shape:
        raise InputError(
            f"input_ids is {tuple(input_ids.shape)} {input_ids.dtype}: "
            "expected whole numbers of shape (samples, length)."
        )
    return input_ids


def hold_back(input_ids_ST: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The windows to prune with, and those to judge by: spread evenly, so that every part of the text has its share.

    Raises:
        InputError: none would be left to prune with.
    """
    windows, count = len(input_ids_ST), plan.held_back
    plan.check_samples(windows)
    if count == 0:
        return input_ids_ST, input_ids_ST[:0]
    held = torch.zeros(windows, dtype=torch.bool)
    held[[(2 * each + 1) * windows // (2 * count) for each in range(count)]] = True
    return input_ids_ST[~held], input_ids_ST[held]


def check_windows(decoder: Decoder, input_ids: Any) -> None:
    """Refuse windows that a model cannot read.

    Raises:
        InputError: no windows of token ids, an id without an embedding, or windows longer than the model's context.
    """
    tokens_ST = check_tokens(input_ids)
    smallest, largest = int(tokens_ST.min()), int(tokens_ST.max())
    if smallest < 0 or largest >= decoder.vocabulary:
        odd = smallest if smallest < 0 else largest
        raise InputError(
            f"input_ids holds the token id {odd}: expected 0 to {decoder.vocabulary - 1}, which "
            f"{type(decoder.model).__name__} has embeddings for. Take windows of the model's own tokenizer."
        )
    length, context = tokens_ST.shape[1], decoder.context
    if context is not None and length > context:
        raise InputError(
            f"input_ids has windows of {length} tokens: the model's context is {context}. Use windows of at most that."
        )
