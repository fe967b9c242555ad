from collections.abc import Iterator, Mapping

import pytest
import torch

from dass.errors import InputError
from dass.sparsity import count_zeros

TENSORS = {
    "embed": torch.tensor([[1.0, 0.0], [2.0, 3.0]]),
    "mlp.up": torch.tensor([[0.0, -0.0], [0.0, 1.0]]),
    "mlp.down": torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.bfloat16),
    "norm": torch.ones(3),
}


def test_mlp_and_model_are_counted_apart():
    count = count_zeros(TENSORS, ["mlp.up", "mlp.down"])
    assert (count.mlp_zeros, count.mlp_weights) == (5, 8)
    assert (count.model_zeros, count.model_weights) == (6, 15)
    assert (count.mlp_sparsity, count.model_sparsity) == (5 / 8, 6 / 15)


def test_a_subnormal_weight_is_not_a_zero():
    assert count_zeros({"w": torch.tensor([1e-42, 0.0])}, ["w"]).mlp_zeros == 1


def test_each_tensor_is_read_once():
    class Lazy(Mapping[str, torch.Tensor]):
        read: list[str] = []

        def __getitem__(self, name: str) -> torch.Tensor:
            self.read.append(name)
            return TENSORS[name]

        def __iter__(self) -> Iterator[str]:
            return iter(TENSORS)

        def __len__(self) -> int:
            return len(TENSORS)

    lazy = Lazy()
    count_zeros(lazy, ["mlp.up"])
    assert lazy.read == list(TENSORS)


def test_a_named_tensor_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="has no mlp.gate"):
        count_zeros(TENSORS, ["mlp.up", "mlp.gate"])


def test_counting_no_mlp_weights_is_refused():
    with pytest.raises(InputError, match="No MLP weights are named"):
        count_zeros(TENSORS, [])
