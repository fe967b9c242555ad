"""KL and agreement token by token, against torch's own definitions and counts by hand."""

import pytest
import torch

from dass.errors import InputError
from dass.measures.divergence import Comparison, Divergence, divergence, frequency_bands, largest, position_bands, top
from dass.measures.losses import token_losses
from tests.models import tiny_model, tiny_tokens


def log_probabilities(tokens: int, vocabulary: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(tokens, vocabulary, generator=generator)).log_softmax(-1)


def test_kl_is_torchs_own() -> None:
    dense_nV, pruned_nV = log_probabilities(7, 400, 0), log_probabilities(7, 400, 1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=dense_nV.double()),
        torch.distributions.Categorical(logits=pruned_nV.double()),
    )
    found = divergence(dense_nV.clone(), pruned_nV)
    torch.testing.assert_close(found.kl_N.double(), expected, rtol=1e-5, atol=1e-6)
    assert found.kl == pytest.approx(expected.mean().item(), rel=1e-5)


def test_agreement_is_counted_by_hand() -> None:
    dense_nV, pruned_nV = log_probabilities(50, 700, 0), log_probabilities(50, 700, 0) + log_probabilities(50, 700, 2)
    found = divergence(dense_nV.clone(), pruned_nV)
    best = [set(row.argsort(descending=True)[:5].tolist()) for row in dense_nV]
    other = [set(row.argsort(descending=True)[:5].tolist()) for row in pruned_nV]
    assert found.shared_N.tolist() == [len(one & two) for one, two in zip(best, other, strict=True)]
    assert found.top1_N.tolist() == (dense_nV.argmax(1) == pruned_nV.argmax(1)).tolist()
    assert 0 < found.top1_agreement < 1
    assert found.top5_overlap == pytest.approx(sum(len(a & b) for a, b in zip(best, other, strict=True)) / 250)


@pytest.mark.parametrize("vocabulary", [3, 63, 64, 65, 500, 49152])
def test_the_largest_is_the_first_of_equal_ones(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(3)
    values_nV = torch.randint(0, max(2, vocabulary // 8), (40, vocabulary), generator=generator).float()
    expected = [row.index(max(row)) for row in values_nV.tolist()]
    assert largest(values_nV).tolist() == expected


@pytest.mark.parametrize("vocabulary", [3, 5, 64, 320, 384, 500, 49152])
def test_the_top_is_that_of_the_whole_row(vocabulary: int) -> None:
    values_nV = log_probabilities(4, vocabulary, 3)
    assert top(values_nV).tolist() == values_nV.topk(min(5, vocabulary), 1).indices.tolist()


def test_a_model_does_not_diverge_from_itself() -> None:
    model, windows_WL = tiny_model(vocab_size=700), tiny_tokens(samples=5, length=12)
    kept: list[torch.Tensor] = []
    losses_WL = token_losses(model, windows_WL, 24, on_slice=lambda piece: kept.append(piece.hidden_nH.clone()))  # type: ignore[union-attr]
    hidden_NH = torch.cat(kept)
    compare = Comparison(lambda start, stop: hidden_NH[start:stop], len(hidden_NH))
    assert torch.equal(token_losses(model, windows_WL, 24, on_slice=compare), losses_WL)
    found = compare.result
    assert found is not None
    assert (len(found), found.kl, found.top1_agreement, found.top5_overlap) == (55, 0.0, 1.0, 1.0)


def test_tokens_whose_hidden_states_were_not_kept_are_left_out() -> None:
    model, windows_WL = tiny_model(), tiny_tokens(samples=5, length=12)
    asked: list[tuple[int, int]] = []

    def hidden_of(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return torch.zeros(stop - start, 32)

    compare = Comparison(hidden_of, 33)
    token_losses(model, windows_WL, 24, on_slice=compare)
    assert asked == [(0, 22), (22, 33)]
    assert compare.result is not None
    assert len(compare.result) == 33


def test_position_bands_part_every_window_alike() -> None:
    bands = list(position_bands(2 * 20, 20))
    assert [(first, last) for first, last, _ in bands] == [
        *((1, 2), (3, 5), (6, 7), (8, 10), (11, 12), (13, 15), (16, 17), (18, 20))
    ]
    assert sum(chosen_N.long() for _, _, chosen_N in bands).tolist() == [1] * 40  # type: ignore[union-attr]
    assert bands[0][2].nonzero()[:, 0].tolist() == [0, 1, 20, 21]
    assert len(list(position_bands(6, 3))) == 3
    with pytest.raises(InputError, match="not whole windows"):
        list(position_bands(41, 20))


def test_frequency_bands_go_by_how_often_an_id_occurs() -> None:
    text = torch.tensor([7] * 12 + [3] * 2 + [5])
    bands = list(frequency_bands(torch.tensor([5, 7, 3, 7]), text))
    assert [(least, most, chosen_N.tolist()) for least, most, chosen_N in bands] == [
        (1, 1, [True, False, False, False]),
        (2, 9, [False, False, True, False]),
        (10, 99, [False, True, False, True]),
    ]


def test_some_of_the_tokens() -> None:
    whole = Divergence(torch.tensor([0.5, 1.5]), torch.tensor([True, False]), torch.tensor([5, 1], dtype=torch.uint8))
    part = whole.where(torch.tensor([False, True]))
    assert (part.kl, part.top1_agreement, part.top5_overlap) == (1.5, 0.0, 0.2)
