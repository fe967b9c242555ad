"""Time of one call on a device, and the device's matrix-product rate."""

import time
from collections.abc import Callable

import torch

_WARM_UP, _CALLS = 10, 100


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


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
