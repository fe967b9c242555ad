"""New values of weights, for methods that change them: one safetensors file a layer.

With them base × masks is not the whole story: the pruned model is the base, masked, with these values in the places of
the kept weights. Of a tensor that no mask names (a norm, attention) the whole is stored, in its own shape: it is
"tuned". Which tensors are, a signed record says; no other may differ from the base's.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dass.errors import InputError
from dass.model.checkpoint import Checkpoint


def save_updates(values: Mapping[str, Tensor], keep: Mapping[str, Tensor], path: Path) -> None:
    """Write the kept values of updated weights, and tuned tensors whole.

    Args:
        values: tensor name -> new values, zero where removed.
        keep: tensor name -> mask; may name more tensors than `values`. One that it does not name is stored whole.
        path: the file to write; not atomic, give a temporary name.
    """
    stored = {name: value.cpu()[keep[name].cpu()] if name in keep else value.cpu() for name, value in values.items()}
    save_file({name: value.contiguous() for name, value in stored.items()}, path)


class Updates(Mapping[str, Tensor]):
    """Files of updated weights as one mapping, read when asked for.

    Tensor name -> its kept values, row-major; of one that no mask names, the whole tensor.

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

    def check_fit(self, masks: Mapping[str, Tensor], base: Checkpoint, tuned: Collection[str] = ()) -> None:
        """Compare the updates with what they are for; how many kept values there are is compared where they are used.

        Args:
            masks: tensor name -> keep mask.
            base: the dense checkpoint.
            tuned: the tensors that may be here whole.

        Raises:
            InputError: they name a tensor that is neither pruned nor tuned, or hold values of another type or shape
                than the base's.
        """
        for name, file in self._file_of.items():
            if name not in masks and name not in tuned:
                raise InputError(f"{file} holds new values of {name}, which the masks do not name.")
            if name not in base.stored:
                raise InputError(f"{file} holds new values of {name}, which {base.folder} does not: another base's.")
            value = self[name]
            if value.dtype != base.dtype(name):
                raise InputError(
                    f"{file}: the new values of {name} are {value.dtype}, and the base's are {base.dtype(name)}: they "
                    "belong to another base."
                )
            if name not in masks and tuple(value.shape) != base.shape(name):
                raise InputError(f"{file}: {name} is {tuple(value.shape)}, and the base's {base.shape(name)}.")

    def tuned(self, masks: Collection[str]) -> list[str]:
        """Names of the tensors that are here whole, sorted: those without a mask."""
        return sorted(name for name in self if name not in masks)

    def replaced_by(self, later: "Updates") -> "Updates":
        """Both, and of a tensor that both have the later values."""
        both = Updates([*self.files, *later.files])
        both.__dict__["_file_of"] = {**self._file_of, **later._file_of}
        return both

    @property
    def digest(self) -> str:
        """sha256 (hex) over the tensors sorted by name: each one's name, dtype and values."""
        digest = hashlib.sha256()
        for name in sorted(self):
            value = self[name]
            digest.update(f"{name} {value.dtype} {value.numel()}\n".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def weight(self, name: str, keep: Tensor | None) -> Tensor:
        """The whole weight: its new values where kept, +0.0 elsewhere; without a mask, as it is stored.

        Raises:
            InputError: the mask keeps another number of weights than there are values.
        """
        values = self[name]
        if keep is None:
            return values
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


def updates_in(folder: Path) -> Updates:
    """The updates that a folder holds; none where it is empty or missing."""
    return Updates(sorted(folder.glob("*.safetensors")))


def named_updates(
    masks: Collection[str], named: Iterable[tuple[Path, Mapping[str, Any] | None]]
) -> tuple[Updates, list[str]]:
    """The new values in several folders, each held to what its record says of it; later ones replace earlier ones.

    Args:
        masks: names of the tensors that have a mask.
        named: a folder, and its record: {"digest", "tuned": names of whole tensors}, or None: nothing may be there.

    Returns:
        All new values, and the names of the tuned tensors, sorted.

    Raises:
        InputError: a folder does not hold what its record names.
    """
    values = Updates([])
    for folder, record in named:
        found, said = updates_in(folder), record or {"digest": None, "tuned": []}
        if (found.digest if found else None) != said["digest"]:
            raise InputError(f"{folder} does not hold the updates that the manifest names ({said['digest']}).")
        if found.tuned(masks) != said["tuned"]:
            raise InputError(f"{folder} holds other whole tensors than the manifest names.")
        values = values.replaced_by(found)
    return values, values.tuned(masks)
