"""Greedy continuations against transformers' own generate."""

import pytest
import torch

from dass.measures import generation
from dass.measures.generation import distinct_3, diverges_at, greedy
from tests.models import tiny_model, tiny_tokens


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("apart", [True, False])
def test_it_is_what_generate_writes(family: str, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(family), tiny_tokens(samples=3, length=10)
    if not apart:
        monkeypatch.setattr(generation, "halves", lambda *_: None)
    expected = model.generate(  # type: ignore[operator]
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=12, min_new_tokens=12
    )
    found = greedy(model, prompts, 12)
    first_end = [row.index(1) if 1 in row else 12 for row in found]
    for row, theirs, end in zip(found, expected[:, 10:].tolist(), first_end, strict=True):
        assert row[:end] == theirs[:end]


def test_a_text_ends_where_its_end_comes() -> None:
    model, prompts = tiny_model(), tiny_tokens(samples=3, length=10)
    whole = greedy(model, prompts, 8)
    end = whole[0][3]
    cut = greedy(model, prompts, 8, [end])
    assert cut[0] == whole[0][: whole[0].index(end)]
    assert all(end not in row for row in cut)


def test_distinct_3_and_the_first_difference() -> None:
    assert distinct_3([1, 2, 3, 4, 5]) == 1.0
    assert distinct_3([1, 1, 1, 1, 1]) == pytest.approx(1 / 3)
    assert distinct_3([1, 2]) is None
    assert diverges_at([1, 2, 3], [1, 2, 4]) == 2
    assert diverges_at([1, 2, 3], [1, 2]) == 2
    assert diverges_at([], [4]) == 0
    assert diverges_at([1, 2], [1, 2]) is None
