"""Gram matrices of batches."""

import pytest
import torch

from dass.method.gram import GramSum, gram

CPU = torch.device("cpu")


def test_that_with_another_has_the_others_channels_as_rows() -> None:
    x, y = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [1.0]])
    assert gram(x, y).tolist() == [[3.0, 7.0]]


@pytest.mark.parametrize("channels", [1, 96, 1023, 1024, 1100, 1537])
def test_a_sum_is_symmetric_and_that_of_all_tokens(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    batches = [torch.randn(2, 3, channels, generator=generator).bfloat16() for _ in range(3)]
    total = GramSum(channels, CPU)
    for each in batches:
        total.add(each)
    found = total.result()
    together = torch.cat([each.flatten(0, 1) for each in batches]).double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), together.T @ together, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, found.T)


def test_what_lies_below_the_diagonals_blocks_is_not_computed() -> None:
    total = GramSum(2048, CPU)
    total.add(torch.ones(1, 2048))
    assert int(total.total_CC.count_nonzero()) == 10 * 512 * 512


def test_sums_of_two_ranks_are_added_up_in_place() -> None:
    x = torch.randn(4, 1100, generator=torch.Generator().manual_seed(0))
    one, other, both = (GramSum(1100, CPU) for _ in range(3))
    one.add(x[:2])
    other.add(x[2:])
    both.add(x)
    one.total_CC += other.total_CC
    torch.testing.assert_close(one.result(), both.result(), rtol=1e-5, atol=1e-5)
