"""What `engine.device` and `engine.dtype` mean on this machine."""

import logging
from typing import TYPE_CHECKING, Any

from dass.errors import InputError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("dass")


def check_device(device: str) -> None:
    """Refuse a device that is not there. Torch takes seconds to import, and only a CUDA device needs it.

    Raises:
        InputError: a CUDA device that this machine does not have.
    """
    if device not in ("auto", "cpu"):
        choose_device(device)


def choose_device(device: str) -> "torch.device":
    """The device a setting names.

    Raises:
        InputError: a CUDA device that this machine does not have.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"engine.device is {device!r}, and torch sees {torch.cuda.device_count()} CUDA devices. Use auto or cpu."
        )
    return chosen


def choose_dtype(dtype: str, stored: "torch.dtype", device: "torch.device") -> "torch.dtype":
    """The torch type to compute in.

    Args:
        dtype: the setting. auto is the checkpoint's own type, unless this is a CPU that has no instructions for it (ten
            times slower than float32 was measured): then float32, which is told.
        stored: the checkpoint's own type.
        device: what computes.
    """
    import torch

    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type != "cpu" or _is_fast_on_this_cpu(stored):
        return stored
    name = str(stored).removeprefix("torch.")
    logger.info(
        f"Computing in float32: this processor has no instructions for {name} (engine.dtype: {name} asks for it)"
    )
    return torch.float32


def _is_fast_on_this_cpu(dtype: "torch.dtype") -> bool:
    """Whether oneDNN, which multiplies matrices for torch on CPUs, has kernels of this type here."""
    import torch

    mkldnn: Any = torch.ops.mkldnn  # what torch's own compiler asks
    if dtype == torch.bfloat16:
        return bool(mkldnn._is_mkldnn_bf16_supported())
    return dtype != torch.float16 or bool(mkldnn._is_mkldnn_fp16_supported())
