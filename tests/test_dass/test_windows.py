"""Windows drawn at random and one after another."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from dass.errors import InputError
from dass.windows import consecutive_windows, random_windows, windows_each


def draw(texts: list[Tensor], length: int, samples: int, seed: int = 0, bos: int | None = None) -> Tensor:
    return random_windows(texts.__getitem__, len(texts), length, samples, seed, bos)


def stream(tokens: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + tokens)


def test_windows_of_one_long_text_are_runs_of_it_that_do_not_overlap() -> None:
    windows = draw([stream(1000)], 32, 31)
    assert windows.shape == (31, 32)
    assert bool((windows.diff(dim=1) == 1).all())
    assert windows.unique().numel() == windows.numel()


def test_every_window_of_a_text_that_is_just_long_enough_is_used() -> None:
    assert torch.equal(draw([stream(12)], 4, 3), stream(12).view(3, 4))


def test_the_same_seed_gives_the_same_windows_and_another_seed_others() -> None:
    texts = [stream(1000)]
    assert torch.equal(draw(texts, 32, 8, seed=3), draw(texts, 32, 8, seed=3))
    assert not torch.equal(draw(texts, 32, 8, seed=3), draw(texts, 32, 8, seed=4))


def test_with_documents_enough_each_gives_one_window_at_a_random_offset() -> None:
    texts = [stream(100, 1000 * i) for i in range(50)]
    windows = draw(texts, 10, 20)
    assert (windows // 1000).unique(dim=1).shape == (20, 1)
    assert (windows[:, 0] // 1000).unique().numel() == 20
    assert (windows[:, 0] % 1000).unique().numel() > 5


def test_documents_shorter_than_a_window_give_none() -> None:
    windows = draw([stream(9), stream(10, 100), stream(3, 200)], 10, 1)
    assert torch.equal(windows[0], stream(10, 100))


def test_a_document_that_is_not_needed_is_never_tokenised() -> None:
    asked: list[int] = []

    def tokens_of(document: int) -> Tensor:
        asked.append(document)
        return stream(10)

    random_windows(tokens_of, 1000, 10, 5, seed=0)
    assert len(asked) == 5


def test_too_few_documents_give_further_windows_without_overlap() -> None:
    windows = draw([stream(100), stream(25, 1000)], 10, 12)
    assert windows.unique().numel() == 120
    assert int((windows[:, 0] >= 1000).sum()) == 2


def test_bos_stands_before_every_window_and_takes_one_place() -> None:
    windows = draw([stream(9, 10)], 4, 3, bos=2)
    assert windows[:, 0].tolist() == [2, 2, 2]
    assert torch.equal(windows[:, 1:], stream(9, 10).view(3, 3))


def test_too_little_text_is_refused_with_the_number_of_windows_it_can_give() -> None:
    with pytest.raises(InputError, match=r"gives 5 windows of 10 tokens, 6 were asked for\. Ask for at most 5"):
        draw([stream(29), stream(31)], 10, 6)


def test_documents_all_too_short_are_refused_with_the_longest() -> None:
    with pytest.raises(InputError, match="gives 0 windows .* longest document has 9 tokens"):
        draw([stream(9), stream(4)], 10, 1)


def test_consecutive_windows_follow_one_another_and_leave_out_the_rest() -> None:
    assert torch.equal(consecutive_windows(stream(11), 4), torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]))


def test_consecutive_windows_are_at_most_as_many_as_asked() -> None:
    assert len(consecutive_windows(stream(40), 4, samples=3)) == 3
    assert len(consecutive_windows(stream(40), 4, samples=99)) == 10


def test_consecutive_windows_with_bos_use_every_token_once() -> None:
    assert torch.equal(consecutive_windows(stream(6, 10), 4, bos=1), torch.tensor([[1, 10, 11, 12], [1, 13, 14, 15]]))


def test_a_stream_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="0 windows of 8 tokens"):
        consecutive_windows(stream(7), 8)


def test_a_bos_token_leaves_no_room_in_a_window_of_one() -> None:
    with pytest.raises(InputError, match="at least 2"):
        consecutive_windows(stream(7), 1, bos=0)


@pytest.mark.parametrize(
    ("samples", "shares", "counts"),
    [
        (10, ("0.7", "0.3"), [7, 3]),
        (32, ("0.7", "0.3"), [22, 10]),
        (3, ("0.5", "0.25", "0.25"), [1, 1, 1]),
        (2, ("0.5", "0.25", "0.25"), [1, 1, 0]),
        (7, ("1",), [7]),
    ],
)
def test_shares_of_the_windows_go_by_largest_remainder(
    samples: int, shares: tuple[str, ...], counts: list[int]
) -> None:
    assert windows_each(samples, [Fraction(share) for share in shares]) == counts
