from collections.abc import Iterator

import pytest
import torch

from dass.errors import InputError
from dass.masks.sparsity import count_zeros

TENSORS = {
    "embed": torch.tensor([[1.0, 0.0], [2.0, 3.0]]),
    "mlp.up": torch.tensor([[0.0, -0.0], [0.0, 1.0]]),
    "mlp.down": torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.bfloat16),
    "norm": torch.ones(3),
}


def test_mlp_and_model_are_counted_apart() -> None:
    count = count_zeros(TENSORS.items(), ["mlp.up", "mlp.down"])
    assert (count.mlp_zeros, count.mlp_weights) == (5, 8)
    assert (count.model_zeros, count.model_weights) == (6, 15)
    assert (count.mlp_sparsity, count.model_sparsity) == (5 / 8, 6 / 15)


def test_a_subnormal_weight_is_not_a_zero() -> None:
    assert count_zeros([("w", torch.tensor([1e-42, 0.0]))], ["w"]).mlp_zeros == 1


def test_tensors_may_come_one_by_one() -> None:
    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        yield from TENSORS.items()

    assert count_zeros(stream(), ["mlp.up"]) == count_zeros(TENSORS.items(), ["mlp.up"])


def test_a_named_tensor_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"has no mlp\.gate"):
        count_zeros(TENSORS.items(), ["mlp.up", "mlp.gate"])


def test_counting_no_mlp_weights_is_refused() -> None:
    with pytest.raises(InputError, match="No MLP weights are named"):
        count_zeros(TENSORS.items(), [])
