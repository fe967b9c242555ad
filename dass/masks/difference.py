"""How far two sets of masks of one model are apart: how many bits moved, and how much of what is kept they share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dass.errors import InputError


@dataclass(frozen=True)
class MaskDifference:
    """The difference of two masks of one weight, or of several together.

    Attributes:
        tensor: parameter name, or what several are called together.
        moved: weights that one mask keeps and the other removes.
        weights: how many weights there are.
        kept: weights that both masks keep.
    """

    tensor: str
    moved: int
    weights: int
    kept: int

    @property
    def share(self) -> float:
        """`moved` as a share of the weights."""
        return self.moved / max(1, self.weights)

    @property
    def jaccard(self) -> float:
        """Weights kept by both, as a share of those kept by either; 1.0 when neither keeps any."""
        either = self.kept + self.moved
        return self.kept / either if either else 1.0

    def as_json(self) -> dict[str, Any]:
        counts = {"tensor": self.tensor, "moved": self.moved, "weights": self.weights}
        return {**counts, "share": self.share, "jaccard": self.jaccard}


def together(name: str, differences: Iterable[MaskDifference]) -> MaskDifference:
    """The difference of several masks, all their weights counted together."""
    found = list(differences)
    return MaskDifference(
        name, *(sum(getattr(each, count) for each in found) for count in ("moved", "weights", "kept"))
    )


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
    return MaskDifference(name, int((a ^ b).count_nonzero()), a.numel(), int((a & b).count_nonzero()))
