"""2:4 kernels of sparse tensor cores against dense matrix products, for the MLP matrices of each N:M layout.

Axes: T tokens, I intermediate, H hidden, O out_features, C in_features.
"""

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from benchmarks.timing import seconds_per_call
from dass.masks.detect import runs_on_sparse_tensor_cores
from dass.method.mask import keep_mask
from dass.method.methods import Layout, Projection
from dass.method.plan import plan
from dass.method.score import ActivationNorms, importance
from dass.method.transposable import transposable_mask

LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def compare_kernel(
    layout: Layout, projection: Projection, hidden: int, intermediate: int, tokens: int, device: torch.device
) -> dict[str, Any]:
    """One MLP matrix with random weights and norms, 2:4 DaSS mask, bfloat16.

    Returns:
        "shape" (O, C) and "has_kernel": whether 2:4 kernels compute with exactly this weight. Where they do and the
        device is a GPU also "dense_seconds" and "sparse_seconds" of one product with (T, C) inputs, and "difference":
        the largest between both results, as a share of the largest dense output.
    """
    generator = torch.Generator(device).manual_seed(0)
    norms = ActivationNorms(*(torch.rand(size, generator=generator, device=device) for size in (hidden, intermediate)))
    shape = (hidden, intermediate) if projection == "down_proj" else (intermediate, hidden)
    weight_OC = torch.randn(shape, generator=generator, device=device).bfloat16()
    weight_OC *= layout_mask(weight_OC, projection, norms, layout)
    has_kernel = runs_on_sparse_tensor_cores(weight_OC)
    row: dict[str, Any] = {"shape": list(shape), "has_kernel": has_kernel}
    if not has_kernel or device.type != "cuda":
        return row
    x_TC = torch.randn(tokens, shape[1], generator=generator, device=device).bfloat16()
    return row | _time(x_TC, weight_OC)


def layout_mask(weight_OC: Tensor, projection: Projection, norms: ActivationNorms, layout: Layout) -> Tensor:
    """The 2:4 DaSS keep mask of one matrix. Down's groups lie along its in_features (I) in every layout."""
    asked = plan(pattern="2:4", layout=layout)
    scores = importance(weight_OC, projection, norms, "dass", layout=layout)
    if layout == "transposable" and projection != "down_proj":
        return transposable_mask(scores.whole())
    return keep_mask(scores, asked.pattern, asked.axis(projection))


def _time(x_TC: Tensor, weight_OC: Tensor) -> dict[str, float]:
    sparse_OC = to_sparse_semi_structured(weight_OC)
    dense_TO, sparse_TO = F.linear(x_TC, weight_OC), F.linear(x_TC, sparse_OC)
    return {
        "dense_seconds": seconds_per_call(lambda: F.linear(x_TC, weight_OC), x_TC.device),
        "sparse_seconds": seconds_per_call(lambda: F.linear(x_TC, sparse_OC), x_TC.device),
        "difference": float((sparse_TO - dense_TO).abs().max() / dense_TO.abs().max()),
    }
