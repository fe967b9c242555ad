"""Which of an MLP's three matrices a stored mask holds: by its name or, in a model nobody listed, by its shape."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from dass.method.methods import PROJECTIONS, Projection

SPELLED: dict[str, tuple[Projection, ...]] = {
    **{projection: (projection,) for projection in PROJECTIONS},
    "w1": ("gate_proj",),
    "w3": ("up_proj",),
    "w2": ("down_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What a stored matrix holds, by the last part of its name: gate's rows before up's."""


def projections_of(name: str, masks: Mapping[str, Tensor]) -> tuple[Projection, ...]:
    """What a stored matrix holds; () where that is not known. Gate and up of an unlisted model are both "gate_proj".

    Args:
        name: the stored tensor.
        masks: stored tensor name -> keep mask; looked into only where the name says nothing.
    """
    beside, _, spelled = name.removesuffix(".weight").rpartition(".")
    if spelled in SPELLED:
        return SPELLED[spelled]
    # A model nobody listed: of the three matrices side by side, down is the one that lies the other way.
    others = [tuple(masks[other].shape) for other in masks if other.startswith(f"{beside}.")]
    shape = tuple(masks[name].shape)
    if len(others) == 3 and shape != shape[::-1]:
        return ("down_proj",) if others.count(shape) == 1 else ("gate_proj",)
    return ()


def matrices(keep: Tensor, held: tuple[Projection, ...]) -> Iterator[list[tuple[Projection, Tensor]]]:
    """A stored mask cut into matrices (out_features, in_features): one list an expert, of what the mask holds of it.

    Args:
        keep: (O, C), or (E, O, C) for stacked experts.
        held: as `projections_of` gives.
    """
    for expert in keep.view(-1, *keep.shape[-2:]):
        yield list(zip(held, expert.chunk(len(held)), strict=True))
