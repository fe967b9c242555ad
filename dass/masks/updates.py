"""New values of kept weights, for methods that change them: one safetensors file a layer, kept values only.

With them base × masks is not the whole story: the pruned model is the base, masked, with these values in the places of
the kept weights.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
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
        """Files are opened when they are first needed.

        Raises InputError, then: a file is damaged, or two hold the same tensor.
        """
        self.files = files

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self.files:
            try:
                with safe_open(path, framework="pt") as handle:
                    names = sorted(handle.keys())
            except SafetensorError as error:
                raise InputError(f"{path} is damaged ({error}).") from None
            for name in names:
                if name in found:
                    raise InputError(f"{found[name]} and {path} both hold new values of {name}.")
                found[name] = path
        return found

    def check_fit(self, masks: Mapping[str, Tensor], dtype_of: Callable[[str], torch.dtype]) -> None:
        """Compare the updates with what they are for; how many values there are is compared where they are used.

        Args:
            masks: tensor name -> keep mask.
            dtype_of: gives the type of the base's tensor of a name.

        Raises:
            InputError: they name a tensor that is not pruned, or hold values of another type than the base's.
        """
        for name in self:
            if name not in masks:
                raise InputError(f"{self._file_of[name]} holds new values of {name}, which the masks do not name.")
            if self[name].dtype != dtype_of(name):
                raise InputError(
                    f"{self._file_of[name]}: the new values of {name} are {self[name].dtype}, and the base's are "
                    f"{dtype_of(name)}: they belong to another base."
                )

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
