"""Matrix products in float32 on a CPU, by whichever of torch's libraries is faster on this make.

torch gives them to MKL, which picks its slower kernels on a CPU that is not Intel's. oneDNN, which torch also has, is
as fast on any. What comes out differs by rounding only.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def fast_products() -> AbstractContextManager[object]:
    """While it lasts, this thread's linear layers use the faster library. For inference: nothing has a gradient."""
    return _ByOneDNN() if _mkl_is_slow() else nullcontext()


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and all(map(_is_plain, args[:2])):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _linear(input_NK: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    output_NM: Tensor = torch.ops.mkldnn._linear_pointwise(input_NK, weight_MK, bias_M, "none", [], "")
    return output_NM


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.dim() > 1


@cache
def _mkl_is_slow() -> bool:
    """Whether MKL runs here on a CPU that it was not made for. Where nobody says whose it is, it stays."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
