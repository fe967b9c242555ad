"""Facts about masks, checked on a real model: exact shares, untouched bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def check_shares(keep: Mapping[str, Tensor], method: str, pattern: str) -> None:
    """Every competing group of every matrix keeps exactly its share.

    Raises:
        AssertionError: names the matrix.
    """
    for name, mask in keep.items():
        along_i_or_row = mask.T if method == "dass" and "down_proj" not in name else mask
        if pattern != "unstructured":
            n, m = map(int, pattern.split(":"))
            groups, share = along_i_or_row.reshape(-1, m), n
        elif method == "magnitude":
            groups, share = mask.reshape(1, -1), mask.numel() // 2
        else:
            groups, share = along_i_or_row, along_i_or_row.shape[1] // 2
        assert (groups.sum(dim=1) == share).all(), f"{name}: a competing group does not keep {share}"


def check_bits(base: Mapping[str, Tensor], pruned: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
    """Kept weights and everything outside the masks have the base's bits; removed weights are +0.0.

    Raises:
        AssertionError: names the tensor.
    """
    assert base.keys() == pruned.keys()
    for name, value in pruned.items():
        expected = base[name].view(_BITS[value.dtype])
        if name in keep:
            expected = expected.masked_fill(keep[name].logical_not(), 0)
        assert torch.equal(value.view(_BITS[value.dtype]), expected), f"{name} is not its base times its mask"


def zeros(tensors: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> int:
    """Entries equal to zero in the named tensors."""
    return sum(tensors[name].numel() - int(tensors[name].count_nonzero()) for name in names)
