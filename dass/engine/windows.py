"""Calibration windows as a caller may give them, checked before any work."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dass.errors import InputError
from dass.method.plan import Plan
from dass.model.decoder import Decoder

_EXPECTED = "expected a LongTensor of shape (samples, length), or a tokenizer's output"
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


Tokens = Tensor | Mapping[str, Any] | Sequence[Any]
"""Windows as a caller may have them: a tensor, a tokenizer's output, or a list of windows."""


def windows_of(given: Any) -> Tensor:
    """The windows in what a caller has, LongTensor (samples, length).

    Args:
        given: a tensor (samples, length); a tokenizer's output, or another mapping with "input_ids"; a list of windows,
            each a list of token ids or a tensor of one window, as data loaders give them. A NumPy array too.

    Raises:
        InputError: something else, windows of several lengths, or padding among the tokens.
    """
    if isinstance(given, Mapping):
        if "input_ids" not in given:
            raise InputError(f'input_ids is a {type(given).__name__} without "input_ids": {_EXPECTED}.')
        given, attended = given["input_ids"], _stacked(given.get("attention_mask"))
        if isinstance(attended, Tensor) and (padding := int(attended.eq(0).sum())):
            raise InputError(
                f"input_ids has {padding} tokens of padding (attention_mask is 0): they are no text to calibrate on. "
                "Cut windows of one length, as dass.calibration_windows does."
            )
    return check_tokens(_stacked(given))


def _stacked(windows: Any) -> Any:
    """A list of windows, or an array, as a tensor; anything else as it is."""
    if type(windows).__module__ == "numpy":
        return torch.as_tensor(windows)
    if not isinstance(windows, list | tuple):
        return windows
    rows: list[Tensor] = []
    for number, window in enumerate(windows):
        try:
            row = torch.as_tensor(window)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"input_ids[{number}] is a {type(window).__name__}: expected a list of token ids."
            ) from None
        row = row[0] if row.dim() == 2 and len(row) == 1 else row
        if row.dim() != 1:
            shape = "a number" if row.dim() == 0 else f"of shape {tuple(row.shape)}"
            raise InputError(f"input_ids[{number}] is {shape}: expected one window of token ids.")
        if rows and len(row) != len(rows[0]):
            raise InputError(
                f"input_ids[{number}] has {len(row)} tokens and input_ids[0] {len(rows[0])}: expected windows of one "
                "length, as dass.calibration_windows cuts."
            )
        rows.append(row)
    if not rows:
        raise InputError(f"input_ids is empty: {_EXPECTED}.")
    return torch.stack(rows)


def check_tokens(input_ids: Any) -> Tensor:
    """Refuse what are no windows of token ids.

    Raises:
        InputError: no tensor, or one of another shape or type than whole numbers (samples, length).
    """
    if not isinstance(input_ids, Tensor):
        raise InputError(f"input_ids is a {type(input_ids).__name__}: {_EXPECTED}.")
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
