"""Intervals and records of divergence, on numbers whose answer is known."""

import math

import pytest
import torch

from dass.errors import NumericalError
from dass.measures.divergence import Divergence
from tasks.evaluation.figures import divergence_record, ratio_interval, scores


def losses(windows: int, shift: float, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 + shift + noise * torch.randn(windows, 31, generator=generator)


def test_scores_of_a_text() -> None:
    found = scores(torch.full((2, 31), 2.0), {"tokens": 62, "words": 31, "bytes": 124})
    assert found == {
        "perplexity": math.exp(2.0),
        "mean_loss": 2.0,
        "word_perplexity": math.exp(4.0),
        "byte_perplexity": math.exp(1.0),
    }


def test_the_interval_holds_the_ratio_and_is_the_same_each_time() -> None:
    dense, pruned = losses(40, 0.0, 1.0), losses(40, 0.5, 1.0, seed=1)
    found = ratio_interval(dense, pruned)
    assert found is not None
    low, high = found["ratio"]
    ratio = math.exp((pruned - dense).mean().item())
    spread = 1.96 * (pruned - dense).mean(1).std().item() / math.sqrt(40)
    assert low < ratio < high
    assert math.log(high / low) == pytest.approx(2 * spread, rel=0.1)
    assert (found["level"], found["resamples"]) == (0.95, 9999)
    assert ratio_interval(dense, pruned) == found


def test_what_both_models_find_hard_does_not_widen_it() -> None:
    dense = losses(40, 0.0, 1.0)
    found = ratio_interval(dense, dense + 0.25)
    assert found is not None
    assert found["ratio"] == pytest.approx([math.exp(0.25)] * 2, rel=1e-5)


def test_one_window_has_no_interval() -> None:
    assert ratio_interval(losses(1, 0.0, 1.0), losses(1, 0.1, 1.0)) is None


def test_the_record_of_a_divergence_and_its_bands() -> None:
    windows_WL = torch.arange(2, 42).view(2, 20)
    windows_WL[:, 5] = 2  # occurs three times, and everything else once
    tokens = 38
    found = Divergence(
        torch.arange(tokens).float(), torch.arange(tokens) % 2 == 0, torch.full((tokens,), 4, dtype=torch.uint8)
    )
    record = divergence_record(found, windows_WL, torch.zeros(2, 19), torch.ones(2, 19))
    assert record is not None
    assert {key: record[key] for key in ("tokens", "kl", "top1_agreement", "top5_overlap")} == {
        "tokens": 38,
        "kl": 18.5,
        "top1_agreement": 0.5,
        "top5_overlap": 0.8,
    }
    assert [(band["from"], band["to"], band["tokens"]) for band in record["by_frequency"]] == [(1, 1, 36), (2, 9, 2)]
    assert record["by_frequency"][1]["kl"] == (4 + 23) / 2
    assert sum(band["tokens"] for band in record["by_position"]) == 38
    assert {band["ratio"] for band in record["by_position"]} == {math.e}
    assert divergence_record(None, windows_WL, torch.zeros(2, 19), torch.ones(2, 19)) is None


def test_a_divergence_that_is_no_number_is_refused() -> None:
    found = Divergence(torch.tensor([math.inf]), torch.tensor([True]), torch.tensor([5], dtype=torch.uint8))
    with pytest.raises(NumericalError, match="divergence from the dense model is inf"):
        divergence_record(found, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 1), torch.zeros(1, 1))
