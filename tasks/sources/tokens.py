"""From text to token ids, and what the base checkpoint says about them."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from dass.errors import InputError
from dass.model.pretrained import load_config, load_tokenizer
from tasks.sources.token_pieces import token_pieces
from tasks.workspace.settings import Bos

logger = logging.getLogger("dass")

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
            if not 0 <= bos < _text_config(folder).vocab_size:
                raise InputError(f"The BOS token in {folder} has id {bos}: it is not embedded. Use bos: never.")
            return bos
    raise InputError(f"bos is {setting!r} but neither tokenizer nor config in {folder} names a BOS token. Use never.")


def first_token(folder: Path) -> int:
    """The token behind which a model starts a text: BOS, or where there is none the end of the text before.

    Raises:
        InputError: the checkpoint names neither.
    """
    tokenizer, config = load_tokenizer(folder), _text_config(folder)
    ends = getattr(config, "eos_token_id", None)
    named = (tokenizer.bos_token_id, getattr(config, "bos_token_id", None), tokenizer.eos_token_id)
    for token in (*named, *(ends if isinstance(ends, list) else [ends])):
        if isinstance(token, int) and 0 <= token < config.vocab_size:
            return token
    raise InputError(
        f"Neither tokenizer nor config in {folder} names a BOS or EOS token: use calibration.source: text."
    )


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
    """Refuse windows with token ids that the model has no embedding for.

    Raises:
        InputError: an id is negative, or at least the config's vocab_size.
    """
    vocabulary = _text_config(folder).vocab_size
    outside = input_ids[(input_ids < 0) | (input_ids >= vocabulary)]
    if len(outside):
        worst = int(outside.max())
        token = load_tokenizer(folder).convert_ids_to_tokens(worst) if worst >= 0 else None
        raise InputError(
            f"The windows hold token id {worst} ({token!r}), and the model's vocab_size is {vocabulary}: it has no "
            "embedding for that. Take it out of the text, or put the model's own tokenizer into its folder."
        )


def digest_of_ids(input_ids: Tensor) -> str:
    """sha256 (hex) of token ids as little-endian int64."""
    return hashlib.sha256(input_ids.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def check_tokenizer(folder: Path) -> None:
    """Refuse a checkpoint without a tokenizer that can be read, and say when it knows more tokens than are embedded.

    Placeholders may lie beyond the embedding, as an image's does in Gemma 3 1B: the ids of the windows count.

    Raises:
        InputError: the tokenizer is missing or unreadable.
    """
    vocabulary = _text_config(folder).vocab_size
    beyond = {i: token for token, i in load_tokenizer(folder).get_vocab().items() if i >= vocabulary}
    if beyond:
        first = min(beyond)
        logger.warning(
            "The tokenizer knows %d tokens that are not embedded (first: %r, id %d): a text with one is refused.",
            *(len(beyond), beyond[first], first),
        )


def _text_config(folder: Path) -> PretrainedConfig:
    return load_config(folder).get_text_config()
