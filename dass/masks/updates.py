"""New values of kept weights, for methods that change them: one safetensors file a layer, kept values only.

With them base × masks is not the whole story: the pruned model is the base, masked, with these values in the places of
the kept weights.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dass.errors import InputError


def save_updates(values: Mapping[str, Tensor], keep: Mapping[str, Tensor], path: Path) -> None:
    """Write the kept values of updated weights.

    Args:
        values: tensor name -> new values, zero where removed.
        keep: tensor name -> mask; may name more tensors than `values`.
        path: the file to write; not atomic, give a temporary name.
    """
    save_file({name: value.cpu()[keep[name].cpu()] for name, value in values.items()}, path)


class Updates(Mapping[str, Tensor]):
    """Files of updated weights as one mapping: tensor name -> its kept values, row-major, read when asked for.

    Attributes:
        files: the files.
    """

    def __init__(self, files: list[Path]) -> None:
        """Raises InputError: a file is damaged."""
        self.files = files

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self.files:
            try:
                with safe_open(path, framework="pt") as handle:
                    found |= dict.fromkeys(sorted(handle.keys()), path)
            except SafetensorError as error:
                raise InputError(f"{path} is damaged ({error}).") from None
        return found

    @property
    def digest(self) -> str:
        """sha256 (hex) over the tensors sorted by name: each one's name, dtype and values."""
        digest = hashlib.sha256()
        for name in sorted(self):
            value = self[name]
            digest.update(f"{name} {value.dtype} {value.numel()}\n".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def weight(self, name: str, keep: Tensor) -> Tensor:
        """The whole pruned weight: its new values where kept, +0.0 elsewhere.

        Raises:
            InputError: the mask keeps another number of weights than there are values.
        """
        values = self[name]
        if int(keep.count_nonzero()) != values.numel():
            raise InputError(
                f"{name}: {values.numel()} values are stored for {int(keep.count_nonzero())} kept weights."
            )
        return values.new_zeros(keep.shape).masked_scatter_(keep, values)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as handle:
            value: Tensor = handle.get_tensor(name)
            return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
