"""A text in pieces has the tokens of the whole text, whatever the tokenizer and however long its words."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

from dass.model.pretrained import load_tokenizer
from tasks.sources import token_pieces as module
from tasks.sources.token_pieces import token_pieces
from tasks.sources.tokens import encode
from tests.models import tiny_text, tiny_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,é漢\n"


def sentencepiece() -> Tokenizer:
    """No pre-tokenizer, and a ▁ put in front of the text: BPE over the whole of it, as in LLaMA 2."""
    vocabulary = {token: i for i, token in enumerate(["?", "▁", *LETTERS, "th", "the", "▁the", "▁▁", "▁▁▁▁", "aa"])}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("▁▁", "▁▁"), ("a", "a")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="?", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def three_digits() -> Tokenizer:
    """Numbers cut into threes from their start, as in LLaMA 3, so that a cut inside one could shift all of it."""
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(["?", " ", *LETTERS])}, [], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+|[^\s]"), "isolated")
    return tokenizer


def unigram() -> Tokenizer:
    """Where several cuts of a word are equally likely, which is taken may depend on the word's length."""
    pieces = [("?", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS), ("aa", -3.5), ("▁the", -2.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["?", "the", *LETTERS, *(f"##{letter}" for letter in LETTERS)])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="?"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


TEXTS = {
    "words": tiny_text(30),
    "one long word": "a" * 4001,
    "one long number": "the " + "1234567" * 500 + " end",
    "spaces": "the" + " " * 3001 + "the\n" * 300,
    "several bytes a character": "漢é " * 900,
    "characters to be put together": "e\u0301 the " * 500,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "make",
    [lambda: tiny_tokenizer().backend_tokenizer, sentencepiece, three_digits, unigram, wordpiece],
    ids=["byte-level", "sentencepiece", "three digits", "unigram", "wordpiece"],
)
def test_pieces_put_together_are_the_whole(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    whole = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    for piece, overlap in ((500, 64), (997, 100)):
        pieces = list(token_pieces(tokenizer, text, piece, overlap))
        assert torch.equal(torch.cat(pieces), whole), (piece, overlap)


def test_a_piece_is_short_where_there_are_words() -> None:
    pieces = list(token_pieces(tiny_tokenizer(), tiny_text(30), 500, 64))
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 500


def test_no_more_of_a_text_is_tokenised_than_is_asked_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, text = load_tokenizer(tiny_checkpoint), tiny_text(30)
    whole = encode(tokenizer, text)
    given: list[int] = []
    tokenised = module._tokenised

    def counted(tokenizer: PreTrainedTokenizerFast, text: str, begin: int, end: int) -> module._Piece:
        given.append(end)
        return tokenised(tokenizer, text, begin, end)

    monkeypatch.setattr(module, "_tokenised", counted)
    monkeypatch.setattr(module.token_pieces, "__defaults__", (500, 64))
    assert torch.equal(encode(tokenizer, text, 400), whole[:400])
    assert max(given) < len(text) // 2
