"""What `engine.device` and `engine.dtype` mean on this machine."""

from typing import TYPE_CHECKING

from dass.errors import InputError

if TYPE_CHECKING:
    import torch


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


def choose_dtype(dtype: str) -> "torch.dtype | None":
    """The torch type a setting names; None for auto (the checkpoint's own)."""
    import torch

    return None if dtype == "auto" else getattr(torch, dtype)
