"""Time of one call on a device, and the rates of matrix products on it."""

import itertools
import time
from collections.abc import Callable, Mapping

import torch
from transformers import LlamaConfig

from benchmarks.flops import linear_shapes

_WARM_UP, _CALLS = 10, 100
_FEWEST = 3  # calls of a product whose fastest counts: the first one warms up
_LARGEST_OUTPUT = 2**27  # a head's logits of many tokens are not asked for at once
_TOKENS = (512, 2048, 8192)  # a product's rate depends on how many go through it at once: the best counts


def seconds_per_call(call: Callable[[], object], device: torch.device) -> float:
    """Mean wall time of many calls in a row, after some that are not counted."""
    for _ in range(_WARM_UP):
        call()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(_CALLS):
        call()
    synchronise(device)
    return (time.perf_counter() - began) / _CALLS


def matmul_rate(size: int, device: torch.device) -> float:
    """FLOP/s of a size × size × size product in bfloat16."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_per_call(lambda: a @ b, device)


def model_rate(config: LlamaConfig, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of this machine's CPU on a model's own matrices, each weighted by its share of the engine's operations.

    Args:
        config: the model's shape.
        dtype: of the matrices.
        seconds: how long each shape is tried at each number of tokens, at least; its fastest call counts.
    """
    return shapes_rate(linear_shapes(config), dtype, seconds)


def shapes_rate(shapes: Mapping[tuple[int, int], int], dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of this machine's CPU on matrices (out_features, in_features) -> how often a token goes through them.

    Args:
        shapes: which matrices.
        dtype, seconds: as for `model_rate`.
    """
    operations = sum(times * rows * columns for (rows, columns), times in shapes.items())
    taken = sum(
        times
        * (rows * columns)
        / max(
            _product_rate(tokens, rows, columns, dtype, seconds)
            for tokens in _TOKENS
            if tokens == min(_TOKENS) or tokens * rows <= _LARGEST_OUTPUT
        )
        for (rows, columns), times in shapes.items()
    )
    return operations / taken


def _product_rate(tokens: int, rows: int, columns: int, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the fastest of several calls of one linear."""
    x_TC, weight_RC = torch.randn(tokens, columns, dtype=dtype), torch.randn(rows, columns, dtype=dtype)
    y_TR = torch.empty(tokens, rows, dtype=dtype)
    fastest, until = float("inf"), time.perf_counter() + seconds
    for call in itertools.count(1):
        began = time.perf_counter()
        torch.mm(x_TC, weight_RC.T, out=y_TR)
        ended = time.perf_counter()
        fastest = min(fastest, ended - began)
        if call >= _FEWEST and ended >= until:
            break
    return 2 * tokens * rows * columns / fastest


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
