"""Arguments of the public functions that are no part of a plan: checked before any work."""

import os
from pathlib import Path
from typing import Any

import torch

from dass.errors import InputError, briefly


def check_path(name: str, value: Any) -> Path:
    """An argument that is the path of a folder.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise InputError(f"{name} is {briefly(value)}: expected the path of a folder.")
    return Path(value)


def check_device(device: Any) -> torch.device:
    """A device that can be computed on.

    Raises:
        InputError: there is none of that name here.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f'device is {briefly(device)}: expected one of this machine, such as "cpu" ({reason}).'
        ) from None
    if found.type == "meta":
        raise InputError('device is "meta": expected one that computes, such as "cpu".')
    return found


def check_dtype(dtype: Any) -> torch.dtype | None:
    """A type to compute in, or None.

    Raises:
        InputError: another value.
    """
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"dtype is {briefly(dtype)}: expected torch.float32, torch.bfloat16, torch.float16, or None.")
    return dtype  # type: ignore[no-any-return]


def check_flag(name: str, value: Any) -> bool:
    """Raises InputError: `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {briefly(value)}: expected True or False.")
    return value


def check_callback(on_layer: Any) -> None:
    """Raises InputError: `on_layer` cannot be called."""
    if on_layer is not None and not callable(on_layer):
        raise InputError(f"on_layer is {briefly(on_layer)}: expected a function of a layer's report.")
