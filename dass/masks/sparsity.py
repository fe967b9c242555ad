"""How many weights of a saved checkpoint are zero: counted, not taken from what was asked."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dass.errors import InputError


@dataclass(frozen=True)
class ZeroCount:
    """Zeros among the MLP weights and among all parameters of one checkpoint.

    Attributes:
        mlp_zeros: zeros in the tensors that were named.
        mlp_weights: entries of these tensors.
        model_zeros: zeros in every tensor of the checkpoint, the named ones included.
        model_weights: entries of every tensor. A matrix shared by two layers is saved once and counts once.
    """

    mlp_zeros: int
    mlp_weights: int
    model_zeros: int
    model_weights: int

    @property
    def mlp_sparsity(self) -> float:
        return self.mlp_zeros / self.mlp_weights

    @property
    def model_sparsity(self) -> float:
        return self.model_zeros / self.model_weights


def count_zeros(tensors: Iterable[tuple[str, torch.Tensor]], mlp_names: Iterable[str]) -> ZeroCount:
    """Count the entries equal to zero (+0.0 or −0.0).

    Args:
        tensors: names and weights of any shape, each taken once and let go: they may come from disk one by one.
        mlp_names: which of them are MLP weights.

    Raises:
        InputError: a named tensor is not there, or none is named.
    """
    missing = set(mlp_names)
    if not missing:
        raise InputError("No MLP weights are named: nothing to count.")
    mlp_zeros = mlp_weights = model_zeros = model_weights = 0
    for name, tensor in tensors:
        zeros = tensor.numel() - int(torch.count_nonzero(tensor))
        model_zeros += zeros
        model_weights += tensor.numel()
        if name in missing:
            missing.remove(name)
            mlp_zeros += zeros
            mlp_weights += tensor.numel()
    if missing:
        raise InputError(f"The checkpoint has no {min(missing)}.")
    return ZeroCount(mlp_zeros, mlp_weights, model_zeros, model_weights)
