"""Importance scores of the three GLU matrices, and which weights compete (arXiv 2405.01943, section 3).

Axes: I intermediate, H hidden, O out_features, C in_features (the contraction axis).
`w_gate_IH`, `w_up_IH`, `w_down_HI`; `norm_z_I` = ‖z_i‖₂ of each intermediate neuron and `norm_x_H` = ‖x_j‖₂ of
each MLP input channel, both over every calibration token. A larger score is kept.

| projection | dass                | wanda           | magnitude |
|------------|---------------------|-----------------|-----------|
| gate, up   | |W_ij| · ‖z_i‖^alpha | |W_ij| · ‖x_j‖  | |W_ij|    |
| down       | |W_ij| · ‖z_j‖      | same as dass    | |W_ij|    |

SparseGPT has no score that stands still: it chooses while it updates (`dass.sparsegpt`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dass.pattern import Pattern

Method = Literal["dass", "wanda", "magnitude", "sparsegpt"]
Layout = Literal["paper", "contraction", "transposable"]
Projection = Literal["gate_proj", "up_proj", "down_proj"]

PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
DEFAULT_ALPHA = 0.5
"""Exponent of the neuron norm in the gate and up scores, the paper's published value."""


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
) -> Tensor:
    """Score every weight of one matrix: float32, shape of the weight, larger = keep.

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
    magnitude_OC = weight_OC.abs().float()
    if method == "magnitude":
        return magnitude_OC
    if projection == "down_proj":
        return magnitude_OC.mul_(_factor(norms.z_I, 1.0, weight_OC)[None, :])
    if method == "wanda":
        return magnitude_OC.mul_(_factor(norms.x_H, 1.0, weight_OC)[None, :])
    if layout == "contraction":
        magnitude_OC.mul_(_factor(norms.x_H, 1.0, weight_OC)[None, :])
    return magnitude_OC.mul_(_factor(norms.z_I, alpha, weight_OC)[:, None])


def competition_axis(projection: Projection, method: Method, pattern: Pattern, layout: Layout = "paper") -> int | None:
    """The axis along which weights compete: 0 within a column, 1 within a row, None across the whole matrix.

    DaSS always competes along the intermediate axis I: rows of gate and up, columns of down. Wanda competes inside
    an output row. Magnitude ranks a whole matrix when unstructured and rows when N:M; SparseGPT ranks blocks of columns
    when unstructured and rows when N:M. With the layout "contraction" every method's groups lie inside an output row;
    with "transposable" gate and up are chosen in 4×4 blocks instead.
    """
    if method == "dass" and layout != "contraction":
        return 1 if projection == "down_proj" else 0
    if method in ("magnitude", "sparsegpt") and pattern.is_unstructured:
        return None
    return 1


def _factor(norm: Tensor, exponent: float, weight: Tensor) -> Tensor:
    # The power is taken in float64; only the product with the weights is float32.
    return norm.double().pow(exponent).to(device=weight.device, dtype=torch.float32)
