"""How many weights of a saved checkpoint are zero: counted, not taken from what was asked."""

from collections.abc import Iterable, Mapping
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


def count_zeros(tensors: Mapping[str, torch.Tensor], mlp_names: Iterable[str]) -> ZeroCount:
    """Count the entries equal to zero (+0.0 or −0.0), one tensor in memory at a time.

    Args:
        tensors: name -> weights of any shape. May read each tensor from disk when it is asked for.
        mlp_names: which of them are MLP weights.

    Raises:
        InputError: a named tensor is not there, or none is named.
    """
    named = set(mlp_names)
    missing = sorted(named - set(tensors))
    if missing or not named:
        raise InputError(f"The checkpoint has no {missing[0]}." if missing else "No MLP weights are named: nothing to count.")
    mlp_zeros = mlp_weights = model_zeros = model_weights = 0
    for name in tensors:
        tensor = tensors[name]
        zeros = tensor.numel() - int(torch.count_nonzero(tensor))
        model_zeros += zeros
        model_weights += tensor.numel()
        if name in named:
            mlp_zeros += zeros
            mlp_weights += tensor.numel()
    return ZeroCount(mlp_zeros, mlp_weights, model_zeros, model_weights)
