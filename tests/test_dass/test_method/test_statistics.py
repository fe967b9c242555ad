"""Sums over tokens: norms and Gram matrices."""

import pytest
import torch

from dass.engine.ranks import ALONE
from dass.method.statistics import StatisticsSum

INTERMEDIATE, HIDDEN = 6, 4
CPU = torch.device("cpu")


def sums(*, with_gram: bool = True) -> StatisticsSum:
    return StatisticsSum((INTERMEDIATE, HIDDEN), CPU, gram_x=with_gram, gram_z=with_gram)


def states(windows: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(windows, 10, size, generator=generator) for size in (HIDDEN, INTERMEDIATE))
    return x.to(dtype), z.to(dtype)


def test_norms_of_two_tokens_are_visible() -> None:
    seen = StatisticsSum((1, 2), CPU, gram_x=True, gram_z=False)
    seen.add(torch.tensor([[[3.0, 0.0], [4.0, 1.0]]]), torch.tensor([[[1.0], [1.0]]]))
    result = seen.result()
    assert result.tokens == 2
    assert result.norms.x_H.tolist() == [5.0, 1.0]
    assert result.norms.z_I.tolist() == pytest.approx([2**0.5])
    assert result.gram_x_HH is not None
    assert result.gram_x_HH.tolist() == [[25.0, 4.0], [4.0, 1.0]]
    assert result.gram_z_II is None
    assert not result.starved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_do_not_depend_on_the_size_of_a_batch(dtype: torch.dtype) -> None:
    """To the last bit: a window is summed in float32, windows in float64."""
    x, z = states(dtype=dtype)
    results = []
    for size in (1, 3, 8):
        seen = sums(with_gram=False)
        for x_B, z_B in zip(x.split(size), z.split(size), strict=True):
            seen.add(x_B, z_B)
        results.append(seen.result())
    assert results[0].norms.x_H.dtype == torch.float64
    for other in results[1:]:
        assert torch.equal(other.norms.x_H, results[0].norms.x_H)
        assert torch.equal(other.norms.z_I, results[0].norms.z_I)
        assert other.tokens == 80


def test_windows_and_a_list_of_tokens_are_the_same_tokens() -> None:
    x, z = states()
    one, other = sums(), sums()
    one.add(x, z)
    other.add(x.flatten(0, 1), z.flatten(0, 1))
    assert one.tokens == other.tokens == 80
    assert torch.allclose(one.result().norms.z_I, other.result().norms.z_I, rtol=1e-6)
    gram_one, gram_other = one.result().gram_z_II, other.result().gram_z_II
    assert gram_one is not None
    assert gram_other is not None
    assert torch.allclose(gram_one, gram_other, rtol=1e-5)


def test_gram_matrices_have_the_squared_norms_on_their_diagonal() -> None:
    seen = sums()
    for x, z in zip(*states(), strict=True):
        seen.add(x, z)
    result = seen.result()
    assert result.gram_x_HH is not None
    assert result.gram_z_II is not None
    assert result.gram_x_HH.dtype == torch.float32
    assert torch.allclose(result.gram_x_HH.diagonal().double(), result.norms.x_H.square(), rtol=1e-5)
    assert torch.allclose(result.gram_z_II.diagonal().double(), result.norms.z_I.square(), rtol=1e-5)


def test_a_sum_over_one_rank_is_what_it_was() -> None:
    seen = sums()
    seen.add(*states())
    before = seen.result()
    seen.merge(ALONE.sum_)
    assert torch.equal(before.norms.z_I, seen.result().norms.z_I)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("in_z", [False, True])
def test_one_wrong_activation_shows(wrong: float, in_z: bool) -> None:
    x, z = states()
    (z if in_z else x)[3, 4, 2] = wrong
    seen = sums(with_gram=False)
    seen.add(x, z)
    assert not seen.result().is_finite


def test_large_bfloat16_activations_are_summed_in_a_wider_type() -> None:
    """The sum of 4096 squares of 1 is 256 in bfloat16: there it stands still."""
    seen = StatisticsSum((1, 1), CPU, gram_x=False, gram_z=False)
    seen.add(torch.ones(1, 4096, 1, dtype=torch.bfloat16), torch.full((1, 4096, 1), 256.0, dtype=torch.bfloat16))
    assert seen.result().norms.x_H.item() == 64.0
    assert seen.result().norms.z_I.item() == 64.0 * 256
