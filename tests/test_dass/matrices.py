"""The gate, up and down matrices of tensors keyed by parameter name, told apart by those names alone."""

from collections.abc import Iterator, Mapping

from torch import Tensor

_PROJECTIONS = {
    "gate_proj": "gate_proj",
    "up_proj": "up_proj",
    "down_proj": "down_proj",
    "gate": "gate_proj",  # what tests/unlisted.py calls them
    "lift": "up_proj",
    "drop": "down_proj",
}


def matrices(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """(parameter, projection, matrix): fused ones are cut into halves, stacks into experts.

    Weights, or masks of their shape. gate and up are (I, H), down is (H, I).
    """
    for name, tensor in tensors.items():
        last = name.removesuffix(".weight").rpartition(".")[2]
        for matrix in tensor.unbind() if tensor.dim() == 3 else [tensor]:
            if last == "gate_up_proj":
                gate, up = matrix.chunk(2)
                yield name, "gate_proj", gate
                yield name, "up_proj", up
            else:
                yield name, _PROJECTIONS[last], matrix


def check_exact(masks: Mapping[str, Tensor], pattern: str = "unstructured", method: str = "dass") -> None:
    """Every competing group keeps exactly half of its weights, or N of M.

    Raises:
        AssertionError: names the parameter.
    """
    for name, projection, mask in matrices(masks):
        along_i = projection == "down_proj"
        groups = mask if method != "dass" or along_i else mask.T  # DaSS competes along I everywhere
        if pattern != "unstructured":
            keep, group = map(int, pattern.split(":"))
        elif method in ("magnitude", "sparsegpt"):
            keep, group = mask.numel() // 2, mask.numel()
        else:
            keep, group = groups.shape[1] // 2, groups.shape[1]
        assert (groups.reshape(-1, group).sum(dim=1) == keep).all(), f"{name}: {projection} does not keep {keep}"
