"""The calibration hidden states in one buffer (placeholder until h2 is merged)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Place = Literal["auto", "device", "host", "disk"]


class HiddenStates:
    def __init__(self, shape, dtype, device, place: Place = "auto", folder: Path | None = None) -> None:
        self._buffer = torch.empty(shape, dtype=dtype, device=device)
        self.shape, self.device = tuple(shape), torch.device(device)

    def read(self, rows: slice) -> Tensor:
        return self._buffer[rows]

    def write(self, rows: slice, value_BTH: Tensor) -> None:
        self._buffer[rows] = value_BTH

    def batches(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.shape[0], size):
            rows = slice(start, min(start + size, self.shape[0]))
            yield rows, self._buffer[rows]

    def save(self, path: Path) -> None:
        save_file({"hidden": self._buffer}, path)

    def load(self, path: Path) -> None:
        self._buffer.copy_(load_file(path)["hidden"])

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
