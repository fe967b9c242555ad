"""Prompts: ten starts of a text, however short some of its paragraphs are."""

import torch

from tasks.evaluation.generations import PROMPT_TOKENS, PROMPTS, prompts_of
from tasks.evaluation.texts import Text
from tests.models import tiny_tokenizer

SHORT = " ".join("abcdefghijkl")
"""Words enough for a prompt, and too few tokens."""


def text(paragraphs: list[str]) -> Text:
    return Text("evaluation", torch.arange(4 * 64).view(4, 64), ["\n\n".join(paragraphs)], {})


def long(number: int) -> str:
    return f"number {number} " + "of many words about rivers and stones " * 5


def test_paragraphs_with_too_few_tokens_leave_ten_prompts_of_the_others() -> None:
    mixed = text([long(number) if number % 3 else SHORT for number in range(60)])
    prompts_PL = prompts_of(mixed, tiny_tokenizer(), None)
    assert prompts_PL.shape == (PROMPTS, PROMPT_TOKENS)
    assert len(prompts_PL.unique(dim=0)) == PROMPTS


def test_few_paragraphs_give_what_they_have_and_none_the_starts_of_windows() -> None:
    tokenizer = tiny_tokenizer()
    assert len(prompts_of(text([long(1), SHORT, long(2)]), tokenizer, None)) == 2
    none = text([SHORT] * 30)
    assert prompts_of(none, tokenizer, None).equal(none.windows_WL[:, :PROMPT_TOKENS])
