"""What `engine.device` and `engine.dtype` mean on this machine."""

import torch

from dass.errors import InputError


def choose_device(device: str) -> torch.device:
    """The device a setting names.

    Raises:
        InputError: a CUDA device that this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"engine.device is {device!r}, and torch sees {torch.cuda.device_count()} CUDA devices. Use auto or cpu."
        )
    return chosen


def choose_dtype(dtype: str) -> torch.dtype | None:
    """The torch type a setting names; None for auto (the checkpoint's own)."""
    return None if dtype == "auto" else getattr(torch, dtype)
