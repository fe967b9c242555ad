"""What both models write: ten starts of the evaluation text, continued with the likeliest token again and again."""

import logging
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dass.measures.generation import distinct_3, diverges_at, greedy
from tasks.evaluation.texts import Text
from tasks.sources.tokens import encode

logger = logging.getLogger("dass")

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 10, 24, 24

_LOOKED_AT = 1 << 20  # characters of the text
_SHORTEST = 12  # words of a paragraph that a prompt is taken from
_TRIED = 4  # starts for each prompt: some have fewer tokens than it takes

T = TypeVar("T")


def prompts_of(text: Text, tokenizer: PreTrainedTokenizerBase, bos: int | None) -> Tensor:
    """At most PROMPTS prompts of the same length, LongTensor (P, L): how documents start, spread over the text.

    Of a text that is one document, or few, how its paragraphs start. A text without any gives starts of its windows.
    """
    length = min(PROMPT_TOKENS, max(1, text.windows_WL.shape[1] // 2))
    starts = _spread([start for start in _starts(text.documents) if len(start.split()) >= _SHORTEST], _TRIED * PROMPTS)
    before = [] if bos is None else [torch.tensor([bos])]
    found = [torch.cat([*before, encode(tokenizer, start[:2000], length)])[:length] for start in starts]
    whole = [ids_L for ids_L in found if len(ids_L) == length]
    return torch.stack(_spread(whole, PROMPTS)) if whole else text.windows_WL[:PROMPTS, :length]


def continued(model: PreTrainedModel | None, prompts_PL: Tensor, context: int) -> list[list[int]]:
    """How a model goes on, at most NEW_TOKENS and no further than a window is long.

    Nothing of one that is larger than memory (None): it would be read once for every token.
    """
    if model is None:
        logger.info("A model larger than memory writes no continuations.")
        return []
    new = max(1, min(NEW_TOKENS, context - prompts_PL.shape[1]))
    return greedy(model, prompts_PL, new, _ends(model))


def generations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    dense: Sequence[Sequence[int]],
    pruned: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """Side by side, each with how much of it repeats and where the two part; none where a model wrote nothing."""
    if not (dense and pruned):
        return []
    return [
        {
            "prompt": _text(tokenizer, prompt),
            "dense": _text(tokenizer, one),
            "pruned": _text(tokenizer, other),
            "distinct3": {"dense": distinct_3(one), "pruned": distinct_3(other)},
            "diverges_at": diverges_at(one, other),
        }
        for prompt, one, other in zip(prompts, dense, pruned, strict=True)
    ]


def _starts(documents: Sequence[str]) -> list[str]:
    if len(documents) >= PROMPTS:
        return [text.strip() for text in documents]
    return [part.strip() for text in documents for part in re.split(r"\n+", text[:_LOOKED_AT])]


def _spread(found: list[T], wanted: int) -> list[T]:
    """So many of them, evenly, or all."""
    count = min(wanted, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def _ends(model: PreTrainedModel) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
