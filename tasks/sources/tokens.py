"""From text to token ids, and what the base checkpoint says about them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from dass.errors import InputError
from dass.model.pretrained import load_config, load_tokenizer
from tasks.sources.token_pieces import token_pieces
from tasks.workspace.settings import Bos

# Between two documents of one stream, as the published WikiText perplexities join them.
SEPARATOR = "\n\n"


def encode(tokenizer: PreTrainedTokenizerBase, text: str, at_most: int | None = None) -> Tensor:
    """Token ids of one text without any special token, LongTensor (N,).

    Args:
        at_most: stop behind so many tokens: a long text is not tokenised to its end for a few windows at its start.
    """
    pieces = []
    for ids_n in token_pieces(tokenizer, text):
        pieces.append(ids_n)
        if at_most is not None and sum(map(len, pieces)) >= at_most:
            break
    return torch.cat(pieces)[:at_most]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], at_most: int | None = None) -> Tensor:
    """Token ids of all texts joined with blank lines and tokenised as one, LongTensor (N,)."""
    return encode(tokenizer, SEPARATOR.join(texts), at_most)


def bos_token(setting: Bos, folder: Path) -> int | None:
    """Which token starts every window of a checkpoint, if any. "auto" means Gemma only.

    Raises:
        InputError: "always", and the checkpoint names no BOS token.
    """
    if setting == "never" or (setting == "auto" and not _text_config(folder).model_type.startswith("gemma")):
        return None
    for bos in (load_tokenizer(folder).bos_token_id, getattr(_text_config(folder), "bos_token_id", None)):
        if isinstance(bos, int):
            return bos
    raise InputError(f"bos is {setting!r} but neither tokenizer nor config in {folder} names a BOS token. Use never.")


def check_context(folder: Path, sequence_length: int, setting: str) -> None:
    """Refuse windows that are longer than the model's context.

    Args:
        folder: a checkpoint.
        sequence_length: tokens of a window.
        setting: the setting's name, for the message.

    Raises:
        InputError: they are longer.
    """
    context = getattr(_text_config(folder), "max_position_embeddings", None)
    if isinstance(context, int) and sequence_length > context:
        raise InputError(f"{setting} is {sequence_length}: the model's context is {context} tokens. Use at most that.")


def check_ids(folder: Path, input_ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        InputError: an id is at least the config's vocab_size.
    """
    vocabulary, largest = _text_config(folder).vocab_size, int(input_ids.max())
    if largest >= vocabulary:
        raise InputError(
            f"The tokenizer made token id {largest}, and the model's vocab_size is {vocabulary}: they do not belong "
            "together. Put the model's own tokenizer into its folder."
        )


def check_tokenizer_fits(folder: Path) -> None:
    """Refuse a checkpoint whose tokenizer knows more tokens than the model embeds.

    Raises:
        InputError: the tokenizer is missing, unreadable or too large.
    """
    check_ids(folder, torch.tensor([*load_tokenizer(folder).get_vocab().values(), 0]))


def _text_config(folder: Path) -> PretrainedConfig:
    return load_config(folder).get_text_config()
