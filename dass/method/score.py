"""Importance scores of the three GLU matrices (arXiv 2405.01943, section 3).

Axes: I intermediate, H hidden, O out_features, C in_features (the contraction axis).
`w_gate_IH`, `w_up_IH`, `w_down_HI`; `norm_z_I` = ‖z_i‖₂ of each intermediate neuron and `norm_x_H` = ‖x_j‖₂ of
each MLP input channel, both over every calibration token. A larger score is kept.

| projection | dass                | wanda           | magnitude |
|------------|---------------------|-----------------|-----------|
| gate, up   | |W_ij| · ‖z_i‖^alpha | |W_ij| · ‖x_j‖  | |W_ij|    |
| down       | |W_ij| · ‖z_j‖      | same as dass    | |W_ij|    |

SparseGPT has no score that stands still: it chooses while it updates (`dass.method.sparsegpt`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dass.method.methods import DEFAULT_ALPHA, Layout, Method, Projection
from dass.method.scores import Scores


@dataclass(frozen=True)
class ActivationNorms:
    """L2 norms over all calibration tokens, float64.

    Attributes:
        x_H: norm of each channel of the MLP's input, shape (H,).
        z_I: norm of each intermediate neuron (the input of the down projection), shape (I,).
    """

    x_H: Tensor
    z_I: Tensor


def importance(
    weight_OC: Tensor,
    projection: Projection,
    norms: ActivationNorms,
    method: Method,
    alpha: float = DEFAULT_ALPHA,
    layout: Layout = "paper",
) -> Scores:
    """Score every weight of one matrix: float32 of its shape once they are written out, larger = keep.

    Args:
        weight_OC: (I, H) for gate and up, (H, I) for down; any float dtype.
        projection: which of the three matrices it is.
        norms: activation norms of this layer.
        method: one column of the table above.
        alpha: exponent of ‖z_i‖ in DaSS's gate and up scores.
        layout: with "contraction", DaSS's gate and up groups lie along H, where ‖z_i‖ is the same for all: their score
            is |W_ij| · ‖x_j‖ · ‖z_i‖^alpha, so that inside a group Wanda's choice decides.
    """
    assert method != "sparsegpt", "chooses while it updates"
    factors: list[tuple[int, Tensor]] = []
    if projection == "down_proj" and method != "magnitude":
        factors.append((1, _factor(norms.z_I, 1.0, weight_OC)))
    elif method == "wanda" or (method == "dass" and layout == "contraction"):
        factors.append((1, _factor(norms.x_H, 1.0, weight_OC)))
    if projection != "down_proj" and method == "dass":
        factors.append((0, _factor(norms.z_I, alpha, weight_OC)))
    return Scores(weight_OC, tuple(factors), of_weights=True)


def _factor(norm: Tensor, exponent: float, weight: Tensor) -> Tensor:
    # The power is taken in float64; only the product with the weights is float32.
    return norm.double().pow(exponent).to(device=weight.device, dtype=torch.float32)
