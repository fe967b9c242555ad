"""How far two sets of masks of one model are apart: how many bits moved, and how much of what is kept they share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dass.errors import InputError


@dataclass(frozen=True)
class MaskDifference:
    """The difference of two masks of one weight.

    Attributes:
        tensor: parameter name.
        moved: weights that one mask keeps and the other removes.
        share: `moved` as a share of the weights.
        jaccard: weights kept by both, as a share of those kept by either; 1.0 when neither keeps any.
    """

    tensor: str
    moved: int
    share: float
    jaccard: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_masks(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[MaskDifference]:
    """The difference of every tensor, in the order of `a`. One pair of masks is in memory at a time.

    Args:
        a: parameter name -> keep mask, bool, any shape.
        b: as `a`, for the same tensors in the same shapes.

    Raises:
        InputError: a tensor is in one set only, or has another shape in the other; names the first such tensor.
    """
    for names, others, which in ((a, b, "first"), (b, a, "second")):
        missing = next((name for name in names if name not in others), None)
        if missing is not None:
            raise InputError(f"Only the {which} masks hold {missing}: they are masks of different models.")
    return [_difference(name, a[name], b[name]) for name in a]  # a call a pair: the next one is read after it is freed


def _difference(name: str, a: Tensor, b: Tensor) -> MaskDifference:
    if a.shape != b.shape:
        raise InputError(
            f"{name}: one mask is {tuple(a.shape)}, the other {tuple(b.shape)}: masks of different models."
        )
    b = b.to(a.device)
    moved, common = int((a ^ b).count_nonzero()), int((a & b).count_nonzero())
    either = common + moved
    return MaskDifference(name, moved, moved / max(1, a.numel()), common / either if either else 1.0)
