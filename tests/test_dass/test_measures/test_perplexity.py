import math

import pytest
import torch
from transformers import PreTrainedModel

from dass.errors import InputError, NumericalError
from dass.measures import losses as module
from dass.measures.losses import mean_loss, token_losses
from dass.measures.perplexity import perplexity, perplexity_of
from tests.models import tiny_model, tiny_tokens


def cross_entropy_by_hand(model: PreTrainedModel, windows_WL: torch.Tensor) -> float:
    """−log softmax of the token that came, written out in float64, window by window."""
    losses: list[float] = []
    for window in windows_WL:
        with torch.no_grad():
            logits_LV = model(window[None]).logits[0].double()
        for position in range(1, len(window)):
            scores = logits_LV[position - 1]
            losses.append(-(scores[window[position]] - scores.exp().sum().log()).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_mean_loss_is_the_cross_entropy_written_out(family: str) -> None:
    model, windows = tiny_model(family), tiny_tokens(samples=5, length=12)
    assert mean_loss(model, windows, batch_tokens=24) == pytest.approx(cross_entropy_by_hand(model, windows), rel=1e-6)


def test_bfloat16_logits_are_scored_in_float32() -> None:
    model, windows = tiny_model(dtype=torch.bfloat16), tiny_tokens()
    assert mean_loss(model, windows, batch_tokens=64) == pytest.approx(cross_entropy_by_hand(model, windows), rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 16, 17, 48, 1000])
def test_batches_hold_whole_windows_and_do_not_change_the_loss(batch_tokens: int) -> None:
    model, windows = tiny_model(), tiny_tokens(samples=5, length=16)
    seen: list[int] = []
    loss = mean_loss(model, windows, batch_tokens, seen.append)
    assert loss == pytest.approx(mean_loss(model, windows, 16), rel=1e-6)
    assert sum(seen) == 5
    assert max(seen) == min(5, max(1, batch_tokens // 16))


def test_a_large_vocabulary_is_scored_in_slices_of_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = tiny_model(), tiny_tokens(samples=4, length=16)
    whole = mean_loss(model, windows, batch_tokens=64)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 300 * 7)
    batches: list[int] = []
    slices: list[tuple[int, ...]] = []
    losses = token_losses(
        model,
        windows,
        64,
        batches.append,
        lambda piece: slices.append((piece.start, *piece.logits_nV.shape)),
    )
    assert losses.mean().item() == pytest.approx(whole, rel=1e-6)
    assert batches == [4]
    assert slices == [(start, min(7, 60 - start), 300) for start in range(0, 60, 7)]


def test_a_model_without_halves_is_scored_in_small_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, windows = tiny_model(), tiny_tokens(samples=4, length=16)
    whole = mean_loss(model, windows, batch_tokens=64)
    monkeypatch.setattr(module, "halves", lambda *_: None)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 300 * 32)
    seen: list[int] = []
    with caplog.at_level("INFO", "dass"):
        assert mean_loss(model, windows, 64, seen.append) == pytest.approx(whole, rel=1e-6)
    assert seen == [2, 2]
    assert "LlamaForCausalLM: no body and head found" in caplog.text


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").zero_()  # lm_head is tied to it
    loss = mean_loss(model, tiny_tokens(), batch_tokens=64)
    assert perplexity(loss) == pytest.approx(300, rel=1e-6)


def test_the_first_token_of_a_window_is_not_predicted() -> None:
    model = tiny_model(vocab_size=300)
    windows = torch.tensor([[5, 7]])
    with torch.no_grad():
        expected = -model(windows).logits[0, 0].log_softmax(-1)[7].item()
    assert mean_loss(model, windows, 64) == pytest.approx(expected, rel=1e-6)


def test_a_nan_names_its_window() -> None:
    model, windows = tiny_model("mistral"), tiny_tokens(samples=3).clamp(min=3)
    windows[1, 4] = 2
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[2] = math.nan
    with pytest.raises(NumericalError, match="window 1 of 3 is nan"):
        mean_loss(model, windows, 16)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1)])
def test_nothing_to_predict_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 1 window of at least 2 tokens"):
        mean_loss(tiny_model(), torch.zeros(shape, dtype=torch.long), 64)


def test_a_perplexity_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(NumericalError, match="too large"):
        perplexity(1e4)


def test_perplexity_a_word_and_a_byte_share_the_total_loss() -> None:
    assert perplexity_of(2.0, tokens=30, units=20) == pytest.approx(math.exp(3.0))
    assert perplexity_of(2.0, tokens=30, units=0) is None
    assert perplexity_of(2.0, tokens=3000, units=1) is None
