"""What a score makes of a layer, by parameter name, and how it is written into the layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dass.method.fit_error import FitErrors
from dass.method.mask import zero_removed_
from dass.method.methods import Score
from dass.method.mlp import PrunedMlp
from dass.model.glu import GluMlp


@dataclass(frozen=True)
class Made:
    """What one score makes of a layer.

    Attributes:
        score: that score.
        pruned: of each MLP.
        keep: masks by parameter name inside the layer.
        values: new values of parameters whose kept weights changed, and of tuned norms, likewise.
        errors: of the re-fit.
    """

    score: Score
    pruned: list[PrunedMlp]
    keep: dict[str, Tensor]
    values: dict[str, Tensor]
    errors: FitErrors


class Companion(Protocol):
    """Goes through the layers beside a pruner."""

    def choose(self, layer: nn.Module, make: Callable[[Score], Made]) -> Made:
        """What is to become of the due layer, which is dense now and afterwards."""

    def follow(self, layer: nn.Module) -> None:
        """The layer is pruned now; it may be left otherwise, for nobody needs it any more."""


def joined(
    mlps: Sequence[GluMlp], pruned: Sequence[PrunedMlp], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks, and the new values where there are any, by parameter name inside the layer.

    A parameter that holds several MLPs' matrices gets one mask; matrices that were not updated keep the stored values.
    """
    keep: dict[str, Tensor] = {}
    updated = {mlp.places[name].parameter for mlp, each in zip(mlps, pruned, strict=True) for name in each.weights}
    values = {name: stored[name].clone() for name in updated}
    for mlp, each in zip(mlps, pruned, strict=True):
        for projection, place in mlp.places.items():
            if not place.at:  # the whole parameter: nothing to join
                keep[place.parameter] = each.keep[projection]
            else:
                if place.parameter not in keep:
                    keep[place.parameter] = torch.ones_like(stored[place.parameter], dtype=torch.bool)
                keep[place.parameter][place.at] = each.keep[projection]
            if projection in each.weights:
                values[place.parameter][place.at] = each.weights[projection]
    for name, value in values.items():
        zero_removed_(value, keep[name])
    return keep, dict(sorted(values.items()))


def write_parameters(
    layer: nn.Module, keep: Mapping[str, Tensor], values: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Make a layer the pruned one: new values where there are any, +0.0 where removed, other weights untouched.

    Args:
        layer: the layer.
        keep: parameter name -> mask of its shape, True = kept.
        values: parameter name -> new values of its shape.
        prefix: what stands before the names inside the layer.
    """
    for name, value in values.items():
        layer.get_parameter(name.removeprefix(prefix)).detach().copy_(value)
    for name, mask in keep.items():
        parameter = layer.get_parameter(name.removeprefix(prefix))
        zero_removed_(parameter, mask.to(parameter.device))
