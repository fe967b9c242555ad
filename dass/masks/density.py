"""How much of every intermediate neuron a set of masks leaves: its row of gate and of up, and its column of down.

Axes: I intermediate neurons of a layer's MLPs, the experts of a mixture one after the other; B bins of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from dass.errors import InputError
from dass.masks.matrices import matrices, projections_of


@dataclass(frozen=True)
class NeuronDensity:
    """What is left of a layer's neurons.

    Attributes:
        layer: number of the decoder layer.
        kept_I: share of each neuron's weights that is kept, float32 (I,).
        removed: neurons of which no weight is kept.
        severed: neurons that reach nothing or are reached by nothing: their row of gate or of up, or their column of
            down, has no weight left. Those that are removed are among them.
    """

    layer: int
    kept_I: Tensor
    removed: int
    severed: int

    def binned(self, bins: int) -> list[tuple[float, float, float]]:
        """Neurons ordered from those that keep least to those that keep most, in `bins` parts as equal as can be.

        Returns:
            Of each part: where it begins and ends, as shares of the neurons, and the mean share kept. A layer with
            fewer neurons than bins has one part a neuron.
        """
        parts = self.kept_I.sort().values.tensor_split(min(bins, len(self.kept_I)))
        ends = [0, *accumulate(map(len, parts))]
        total = ends[-1]
        return [
            (begin / total, end / total, float(part.mean()))
            for (begin, end), part in zip(pairwise(ends), parts, strict=True)
        ]


def neuron_densities(masks: Mapping[str, Tensor]) -> list[NeuronDensity]:
    """The density of every layer that has masks. One mask is in memory at a time.

    Args:
        masks: stored tensor name -> keep mask, (O, C), or (E, O, C) for stacked experts.

    Raises:
        InputError: a mask's part in its MLP, or its layer, is not known.
    """
    counted: dict[int, dict[tuple[str, int], _Count]] = {}
    for name in masks:
        number, held = re.search(r"\.(\d+)\.", name), projections_of(name, masks)
        if number is None or not held:
            raise InputError(f"{name}: which layer's gate, up or down it is the mask of is not known from its name.")
        mlps = counted.setdefault(int(number[1]), {})
        for expert, parts in enumerate(matrices(masks[name], held)):
            mlp = mlps.setdefault((name.removesuffix(".weight").rpartition(".")[0], expert), _Count())
            for projection, keep in parts:
                mlp.add(keep.T if projection == "down_proj" else keep)
    return [_density(layer, list(counted[layer].values())) for layer in sorted(counted)]


class _Count:
    """The neurons of one MLP: how many weights each has, how many are kept, and which lost all of a matrix's."""

    def __init__(self) -> None:
        self.weights = 0
        self.kept_I: Tensor | None = None
        self.severed_I: Tensor | None = None

    def add(self, keep: Tensor) -> None:
        """Count a matrix, neurons first."""
        kept_I = keep.sum(dim=1, dtype=torch.int64)
        self.weights += keep.shape[1]
        self.kept_I = kept_I if self.kept_I is None else self.kept_I + kept_I
        self.severed_I = kept_I == 0 if self.severed_I is None else self.severed_I | (kept_I == 0)


def _density(layer: int, mlps: list[_Count]) -> NeuronDensity:
    kept = [mlp.kept_I / mlp.weights for mlp in mlps if mlp.kept_I is not None]
    kept_I = torch.cat(kept).float()
    severed = sum(int(mlp.severed_I.sum()) for mlp in mlps if mlp.severed_I is not None)
    return NeuronDensity(layer, kept_I, int((kept_I == 0).sum()), severed)
