"""Long texts, tokenised piece by piece: the tokens of the whole text, in a small share of the memory.

A fast tokenizer takes some 150 bytes a character while it works, so 24 MB of text would take 3.6 GB. Here it is given
pieces that overlap. Two pieces meet only where the tokens of both agree over half of the overlap, far from where
either was cut, and between two words: a tokenizer takes words one by one, from left to right. BPE also meets inside a
word that is longer than the overlap, because its merges go from left to right too. Where pieces do not agree, longer
ones are taken, up to the whole text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_PIECE, _OVERLAP = 1 << 18, 1 << 12  # characters


@dataclass(frozen=True)
class _Piece:
    """Tokens of text[begin:end]: their ids, the characters they start at, and the words they are of, each (N,)."""

    begin: int
    end: int
    ids_N: Tensor
    starts_N: Tensor
    words_N: Tensor


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, piece: int = _PIECE, overlap: int = _OVERLAP
) -> Iterator[Tensor]:
    """The token ids of one text without any special token, in turn; put together they are those of the whole text.

    Args:
        tokenizer: a slow one (written in Python) knows no places in the text: its text comes in one piece.
        text: of any length.
        piece: characters tokenised at once.
        overlap: characters two pieces have in common.

    Yields:
        LongTensor (n,), some empty.
    """
    if len(text) <= piece or not tokenizer.is_fast:
        yield torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
        return
    here = _tokenised(tokenizer, text, 0, piece)
    given = 0  # where the tokens not yet given start
    while here.end < len(text):
        met = _next(tokenizer, text, here, given, piece, overlap)
        if met is None:
            here = _tokenised(tokenizer, text, here.begin, here.begin + 2 * (here.end - here.begin))
            continue
        following, cut = met
        yield here.ids_N[(here.starts_N >= given) & (here.starts_N < cut)]
        here, given = following, cut
    yield here.ids_N[here.starts_N >= given]


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str, begin: int, end: int) -> _Piece:
    end = min(end, len(text))
    made = tokenizer(text[begin:end], add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    starts = [start + begin for start, _ in made["offset_mapping"]]
    words = [-1 if word is None else word for word in made.word_ids(0)]
    return _Piece(begin, end, *(torch.tensor(each, dtype=torch.long) for each in (made["input_ids"], starts, words)))


def _next(
    tokenizer: PreTrainedTokenizerBase, text: str, here: _Piece, given: int, piece: int, overlap: int
) -> tuple[_Piece, int] | None:
    """The piece behind `here`, and the place where both meet; None when there is none."""
    if not _in_order(here):
        return None
    bpe = isinstance(tokenizer.backend_tokenizer.model, BPE)
    while overlap <= (here.end - here.begin) // 2:
        fitting = here.starts_N[(here.starts_N > given) & (here.starts_N <= here.end - overlap)]
        if len(fitting):
            begin = int(fitting[-1])
            following = _tokenised(tokenizer, text, begin, max(begin + piece, here.end + piece // 2))
            margin = (here.end - begin) // 4
            cut = _meeting(here, following, begin + margin, here.end - margin, bpe)
            if cut is not None:
                return following, cut
        overlap *= 2
    return None


def _meeting(left: _Piece, right: _Piece, low: int, high: int, inside_words: bool) -> int | None:
    """A character between `low` and `high` where a token starts in both pieces, if all tokens there are the same."""
    if not _in_order(right):
        return None
    of_left, of_right = ((each.starts_N >= low) & (each.starts_N < high) for each in (left, right))
    starts_n = left.starts_N[of_left]
    if not torch.equal(starts_n, right.starts_N[of_right]) or not torch.equal(
        left.ids_N[of_left], right.ids_N[of_right]
    ):
        return None
    apart = starts_n[1:] > starts_n[:-1]  # the bytes of one character are tokens that start at the same place
    new_word = apart.clone()
    for words_n in (left.words_N[of_left], right.words_N[of_right]):
        new_word &= words_n[1:] != words_n[:-1]
    cuts = starts_n[1:][new_word]
    if not len(cuts) and inside_words:
        cuts = starts_n[1:][apart]
    return int(cuts[len(cuts) // 2]) if len(cuts) else None


def _in_order(piece: _Piece) -> bool:
    return bool((piece.starts_N[1:] >= piece.starts_N[:-1]).all())
