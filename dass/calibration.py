"""Calibration windows from texts of the caller's, with the model's own tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dass.errors import InputError, briefly
from dass.windows import random_windows

DEFAULT_LENGTH = 512
_MOST = 128  # windows, where nobody says how many: what the paper's figures were made with


def calibration_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    *,
    samples: int | None = None,
    sequence_length: int = DEFAULT_LENGTH,
    seed: int = 0,
    bos: bool | None = None,
) -> Tensor:
    """Windows of equal length from random places of some texts, no two overlapping: what `prune` takes as input_ids.

    A window lies inside one text, so texts that are shorter than a window give none: join short ones first.

    Args:
        tokenizer: the model's own.
        texts: one text, or several.
        samples: how many windows; None takes as many as the texts give, up to 128.
        sequence_length: tokens of a window.
        seed: the same seed, texts and tokenizer give the same windows.
        bos: whether every window starts with the BOS token; None does what the tokenizer does at the start of a text.

    Returns:
        LongTensor (samples, sequence_length).

    Raises:
        InputError: a value that cannot be used, or texts too short for that. The message says what they can give.

    Example:
        >>> input_ids = dass.calibration_windows(tokenizer, Path("book.txt").read_text(), samples=32)
        >>> dass.prune(model, input_ids, pattern="2:4")
    """
    tokenizer, listed = check_tokenizer(tokenizer), check_texts(texts)
    for name, value, least in (
        ("samples", 1 if samples is None else samples, 1),
        ("sequence_length", sequence_length, 1),
    ):
        if type(value) is not int or value < least:
            raise InputError(f"{name} is {briefly(value)}: expected a whole number of {least} or more.")
    if type(seed) is not int:
        raise InputError(f"seed is {briefly(seed)}: expected a whole number.")
    first = _first_token(tokenizer, bos)
    tokens: dict[int, Tensor] = {}

    def tokens_of(number: int) -> Tensor:
        if number not in tokens:
            ids: list[int] = tokenizer(listed[number], add_special_tokens=False, verbose=False)["input_ids"]
            tokens[number] = torch.tensor(ids, dtype=torch.long)
        return tokens[number]

    if samples is None:
        width, samples = max(1, sequence_length - (first is not None)), 0
        for number in range(len(listed)):
            if samples < _MOST:
                samples += len(tokens_of(number)) // width
        samples = min(max(samples, 1), _MOST)
    return random_windows(tokens_of, len(listed), sequence_length, samples, seed, first)


def check_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer is {briefly(tokenizer)}: expected a transformers tokenizer, as AutoTokenizer.from_pretrained "
            "gives."
        )
    return tokenizer


def check_texts(texts: Any) -> list[str]:
    """One text or several, as a list.

    Raises:
        InputError: they are something else, or there is none.
    """
    listed = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Sequence) else None
    if listed is None or not listed:
        raise InputError(f"texts is {briefly(texts)}: expected a text, or a list of texts.")
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"texts[{number}] is {briefly(text)}: expected a text. Decode it, or take its text field.")
    return listed


def _first_token(tokenizer: PreTrainedTokenizerBase, bos: Any) -> int | None:
    known: Any = tokenizer.bos_token_id
    if bos not in (None, True, False):
        raise InputError(f"bos is {briefly(bos)}: expected True, False, or None to do as the tokenizer does.")
    if bos and known is None:
        raise InputError("bos is True, and the tokenizer has no BOS token. Use False.")
    if bos is None:
        bos = known is not None and tokenizer("", verbose=False)["input_ids"][:1] == [known]
    return int(known) if bos else None
