"""How much of an activation sits in a few of its channels, told from the channels' norms over all tokens.

C channels. A norm stands for a channel's root mean square: the tokens are as many for all.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dass.errors import InputError, NumericalError

MULTIPLES = (5.0, 7.0, 10.0)
"""A channel whose norm is more than so many times the mean norm is an outlier."""
TOP = 0.01
"""Share of the channels, the largest ones, whose part of the energy is told; at least one channel."""


@dataclass(frozen=True)
class Outliers:
    """Of one activation.

    Attributes:
        channels: C.
        beyond: for each multiple, the share of channels whose norm is more than so many times the mean norm.
        kurtosis: mean of norm⁴ over the square of the mean of norm²: 1 where all channels are alike, C where one holds
            everything (He et al. 2024, arXiv 2405.19279).
        top_share: of the energy, the sum of norm², what the largest TOP of the channels hold.
        largest: largest norm over the mean norm.
    """

    channels: int
    beyond: dict[float, float]
    kurtosis: float
    top_share: float
    largest: float


def outliers(norms_C: Tensor, multiples: tuple[float, ...] = MULTIPLES) -> Outliers:
    """What a few channels hold.

    An activation that is zero everywhere has channels that are all alike.

    Args:
        norms_C: L2 norm of each channel over all tokens, any float type (C,).
        multiples: of the mean norm, beyond which a channel is an outlier.

    Raises:
        InputError: there is no channel.
        NumericalError: a norm is NaN or infinite.
    """
    if norms_C.dim() != 1 or not len(norms_C):
        raise InputError(f"norms have shape {tuple(norms_C.shape)}: expected one for each channel, at least one.")
    norms_C = norms_C.double().cpu()
    if not norms_C.isfinite().all():
        raise NumericalError("a channel's norm is NaN or infinite.")
    channels, mean = len(norms_C), norms_C.mean().item()
    most = max(1, math.floor(TOP * channels))
    if mean == 0.0:
        return Outliers(channels, dict.fromkeys(multiples, 0.0), 1.0, most / channels, 1.0)
    relative_C = norms_C / mean
    squares_C = relative_C.square()
    return Outliers(
        channels,
        {multiple: (relative_C > multiple).double().mean().item() for multiple in multiples},
        (squares_C.square().mean() / squares_C.mean().square()).item(),
        (squares_C.topk(most).values.sum() / squares_C.sum()).item(),
        relative_C.max().item(),
    )


def jaccard(one: Tensor, other: Tensor) -> float:
    """What two masks both keep, as a share of what at least one of them keeps; 1 where neither keeps anything.

    Two random masks that keep the share d of the weights come to d / (2 − d): a third at one half.

    Args:
        one: bool, any shape.
        other: bool, the same shape.
    """
    if one.shape != other.shape:
        raise InputError(f"masks have shapes {tuple(one.shape)} and {tuple(other.shape)}: expected equal ones.")
    either = int(torch.logical_or(one, other).count_nonzero())
    return int(torch.logical_and(one, other).count_nonzero()) / either if either else 1.0
