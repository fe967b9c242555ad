"""Mask files: keep masks of a model, one packed bit a weight, in one safetensors file.

The mask is the artifact: base × masks is the pruned model.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dass.checkpoint import Checkpoint
from dass.errors import InputError
from dass.packing import mask_digest, pack_mask, unpack_mask
from dass.updates import Updates

FORMAT = "dass-masks-1"
_HEADER = "dass"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5"}


def save_masks(keep: Mapping[str, Tensor], path: Path, more: Mapping[str, str] | None = None) -> None:
    """Write keep masks.

    Args:
        keep: parameter name -> bool tensor, True = kept.
        path: the file to write; not atomic, give a temporary name.
        more: further strings for the file's metadata.
    """
    shapes = {name: list(mask.shape) for name, mask in keep.items()}
    # One key only: safetensors writes several in an order that changes from call to call, and so the file's bytes.
    header = json.dumps({**(more or {}), "format": FORMAT, "shapes": shapes}, sort_keys=True)
    save_file({name: pack_mask(mask) for name, mask in keep.items()}, path, {_HEADER: header})


class MaskFile(Mapping[str, Tensor]):
    """A mask file as a mapping: parameter name -> bool tensor, unpacked when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises InputError: the file is missing, damaged, or not a mask file."""
        self.path = path
        try:
            with safe_open(path, framework="pt") as handle:
                header = (handle.metadata() or {}).get(_HEADER, "{}")
        except FileNotFoundError:
            raise InputError(f"No mask file {path}. Prune first: dass run") from None
        except SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}).") from None
        self.metadata: dict[str, Any] = json.loads(header)
        if self.metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a mask file of format {FORMAT}.")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape of the weight."""
        return {name: tuple(shape) for name, shape in self.metadata["shapes"].items()}

    @property
    def digest(self) -> str:
        """The masks' digest: depends on names, shapes and bits, not on the file."""
        with safe_open(self.path, framework="pt") as handle:
            return mask_digest((name, shape, handle.get_tensor(name)) for name, shape in self.shapes.items())

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, framework="pt") as handle:
            return unpack_mask(handle.get_tensor(name), self.shapes[name])

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class MaskFiles(Mapping[str, Tensor]):
    """Several mask files as one mapping."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises InputError: as MaskFile."""
        self._file_of = {name: file for file in map(MaskFile, paths) for name in file}

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def removed_shares(masks: Mapping[str, Tensor], base: Checkpoint) -> dict[str, float]:
    """Share of weights the masks remove: of the MLP weights ("mlp") and of the whole model ("model")."""
    removed = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())
    in_mlps = sum(math.prod(base.shape(name)) for name in masks)
    in_model = sum(math.prod(place.shape) for place in base.stored.values())
    return {"mlp": removed / in_mlps, "model": removed / in_model}


def apply_to_checkpoint(
    base: Checkpoint, masks: Mapping[str, Tensor], folder: Path, updates: Updates | None = None
) -> None:
    """Write base × masks into `folder`: removed weights are +0.0, every other byte is the base's.

    Config, tokenizer and whatever else is text or safetensors come along; pickles and folders do not.

    Args:
        base: the dense checkpoint.
        masks: stored tensor name -> keep mask.
        folder: where to.
        updates: new values of the kept weights of some tensors; those replace the base's.

    Raises:
        InputError: the masks are for another base (a tensor is missing or has another shape), or not for the updates.
    """
    check_masks_fit(base, masks)

    def pruned(name: str, weight: Tensor) -> Tensor | None:
        if name not in masks:
            return None
        keep = masks[name]
        return updates.weight(name, keep) if updates and name in updates else weight.masked_fill_(~keep, 0.0)

    for path in sorted(base.folder.iterdir()):
        if path.is_file() and path.suffix not in _PICKLES and path.name not in base.files:
            shutil.copyfile(path, folder / path.name)
    base.copy(folder, pruned)


def check_masks_fit(base: Checkpoint, masks: Mapping[str, Tensor]) -> None:
    """Raise InputError when the masks name a tensor that the base does not hold in that shape."""
    for name, mask in masks.items():
        if name not in base.stored:
            raise InputError(f"The masks name {name}, which {base.folder} does not hold: they belong to another base.")
        if base.shape(name) != tuple(mask.shape):
            raise InputError(f"{name}: the mask is {tuple(mask.shape)}, the weight {base.shape(name)}: another base.")
