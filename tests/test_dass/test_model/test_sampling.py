"""What a model writes itself: drawn by its own probabilities, the same for the same seed."""

import pytest
import torch

from dass.errors import InputError, NumericalError
from dass.measures.generation import greedy
from dass.model import sampling
from dass.model.sampling import drawn, sampled_windows
from tests.models import VOCABULARY, tiny_model

SAMPLES, LENGTH, START = 5, 12, 0


def test_the_token_whose_share_holds_the_number_is_drawn() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().repeat(6, 1)
    chance = torch.tensor([0.0, 0.499, 0.501, 0.8, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert drawn(logits, chance, 1.0, None).tolist() == [0, 0, 1, 2, 3, 3]
    # Of the two likeliest the first takes two thirds.
    assert drawn(logits, chance, 1.0, 2).tolist() == [0, 0, 0, 1, 1, 1]
    # At half the temperature shares are squared: 16, 4, 1 and 1 of 22.
    assert drawn(logits, chance, 0.5, None).tolist() == [0, 0, 0, 1, 1, 3]


def test_a_token_that_cannot_come_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert drawn(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, None).tolist() == [1, 1]


def test_logits_that_are_not_finite_are_refused() -> None:
    for odd in (torch.nan, torch.inf):
        with pytest.raises(NumericalError, match="logits are NaN or infinite"):
            drawn(torch.tensor([[0.0, odd]]), torch.tensor([0.5], dtype=torch.float64), 1.0, None)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral"])
def test_every_token_follows_from_those_before_it(family: str) -> None:
    model = tiny_model(family)
    told: list[int] = []
    windows = sampled_windows(model, START, SAMPLES, LENGTH, seed=3, on_tokens=told.append)
    assert (windows.shape, windows.dtype) == ((SAMPLES, LENGTH), torch.int64)
    assert sum(told) == SAMPLES * LENGTH
    assert 0 <= int(windows.min()) <= int(windows.max()) < VOCABULARY
    chance = torch.rand((SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.cat([torch.full((SAMPLES, 1), START), windows[:, :-1]], dim=1), use_cache=False).logits
    for place in range(LENGTH):
        assert torch.equal(drawn(logits[:, place], chance[:, place], 1.0, None), windows[:, place])


def test_the_likeliest_alone_is_what_greedy_writes() -> None:
    model = tiny_model()
    windows = sampled_windows(model, START, 2, LENGTH, seed=0, top_k=1)
    assert windows.tolist() == greedy(model, torch.tensor([[START], [START]]), LENGTH)


def test_the_seed_decides_and_how_many_are_computed_at_once_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    windows = sampled_windows(model, START, SAMPLES, LENGTH, seed=0)
    assert torch.equal(sampled_windows(model, START, SAMPLES, LENGTH, seed=0), windows)
    assert not torch.equal(sampled_windows(model, START, SAMPLES, LENGTH, seed=1), windows)
    monkeypatch.setattr(sampling, "AT_ONCE", 2)
    assert torch.equal(sampled_windows(model, START, SAMPLES, LENGTH, seed=0), windows)


def test_too_little_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sampling, "drawn", full)
    with pytest.raises(InputError, match=r"5 windows of 12 tokens do not fit .*calibration\.sequence_length"):
        sampled_windows(tiny_model(), START, SAMPLES, LENGTH, seed=0)
