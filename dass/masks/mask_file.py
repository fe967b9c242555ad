"""Mask files: keep masks of a model in one safetensors file, packed as N:M groups or as one bit a weight.

The mask is the artifact: base × masks is the pruned model.

A file's tensors are bytes. Its metadata has one key, "dass", a JSON object: "format"; "shapes", of the weights;
"encodings", how each tensor's bytes are read: "bits" (`dass.masks.packing`) or a grouping such as "2:4 along axis 1"
(`dass.masks.group_packing`); and whatever strings the writer added.
"""

import json
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dass.digests import Digests
from dass.errors import InputError
from dass.files import sha256_file
from dass.masks.beside import write_beside
from dass.masks.group_packing import Grouping, pack_groups, unpack_groups
from dass.masks.packing import count_bits, mask_digest, pack_mask, unpack_mask
from dass.masks.pruned_record import write_record
from dass.masks.updates import Updates
from dass.method.mask import zero_removed_
from dass.model.checkpoint import Checkpoint
from dass.model.checkpoint_folder import Contents, contents

logger = logging.getLogger("dass")

FORMAT = "dass-masks-2"
MASKS = "masks.safetensors"
"""Its name in a folder that holds a model's masks."""
_HEADER = "dass"
_BITS = "bits"


def save_masks(keep: Mapping[str, Tensor], path: Path, more: Mapping[str, str] | None = None) -> None:
    """Write keep masks, each in the smallest encoding its bits allow. Those of mask files are taken as they are packed.

    Args:
        keep: parameter name -> bool tensor, True = kept.
        path: the file to write; not atomic, give a temporary name.
        more: further strings for the file's metadata.
    """
    shapes: dict[str, list[int]] = {}
    encodings: dict[str, str] = {}
    packed: dict[str, Tensor] = {}
    for name in keep:
        if isinstance(keep, PackedMasks):
            shapes[name], (encodings[name], packed[name]) = list(keep.shape(name)), keep.packed(name)
            continue
        mask = keep[name]
        grouping, packed[name] = pack_groups(mask) or (_BITS, pack_mask(mask))
        shapes[name], encodings[name] = list(mask.shape), str(grouping)
    # One key only: safetensors writes several in an order that changes from call to call, and so the file's bytes.
    header = {**(more or {}), "format": FORMAT, "shapes": shapes, "encodings": encodings}
    save_file(packed, path, {_HEADER: json.dumps(header, sort_keys=True)})


class PackedMasks(Mapping[str, Tensor]):
    """Masks that lie packed in files, unpacked when asked for."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a mask."""

    @abstractmethod
    def packed(self, name: str) -> tuple[str, Tensor]:
        """A mask as it lies in its file: encoding, and bytes (uint8).

        Raises:
            InputError: they are not as many as the shape asks for.
        """

    @abstractmethod
    def kept(self, name: str) -> int:
        """How many weights a mask keeps. Raises InputError: the mask's bytes are damaged."""


class MaskFile(PackedMasks):
    """A mask file as a mapping: parameter name -> bool tensor, unpacked when asked for.

    Attributes:
        path: the file.
        metadata: the JSON object in the file's header.
        shapes: parameter name -> shape of the weight.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError: the file is missing, damaged, or not a mask file."""
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would never end
            raise InputError(f"{path} is no file: expected a mask file.")
        try:
            with safe_open(path, framework="pt") as handle:
                header = (handle.metadata() or {}).get(_HEADER, "{}")
                stored = set(handle.keys())
        except FileNotFoundError:
            raise InputError(f"No mask file {path}. Prune first: dass run") from None
        except SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}).") from None
        self.metadata: dict[str, Any] = _parse_header(header, path)
        if self.metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a mask file of format {FORMAT}.")
        shapes, encodings = self.metadata.get("shapes"), self.metadata.get("encodings")
        if not isinstance(shapes, dict) or not isinstance(encodings, dict):
            raise InputError(f"{path} is damaged (its header lacks the shapes or the encodings of the masks).")
        for name in sorted({*shapes, *encodings, *stored}):
            if name not in stored or name not in shapes or name not in encodings:
                raise self._damaged(name, "its bytes, its shape or its encoding is missing")
        self.shapes = {name: self._shape(name, shape) for name, shape in shapes.items()}
        self._groupings = {name: self._grouping(name, encoding) for name, encoding in encodings.items()}

    @property
    def digest(self) -> str:
        """The masks' digest: depends on names, shapes and bits, not on the file or its encodings.

        Raises InputError: a mask's bytes are damaged.
        """
        return mask_digest(self.shapes, self._bits)

    def __getitem__(self, name: str) -> Tensor:
        """Raises InputError: the mask's bytes are damaged. KeyError: there is no such mask."""
        shape, grouping = self.shapes[name], self._groupings[name]
        packed = self._read(name)
        try:
            return unpack_groups(packed, shape, grouping) if grouping else unpack_mask(packed, shape)
        except ValueError as error:
            raise self._damaged(name, error) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a mask."""
        return self.shapes[name]

    def packed(self, name: str) -> tuple[str, Tensor]:
        """As the base says."""
        packed, grouping = self._read(name), self._groupings[name]
        entries = math.prod(self.shapes[name])
        size = grouping.size(entries // grouping.group) if grouping else -(-entries // 8)
        if packed.numel() != size:
            raise self._damaged(name, f"{packed.numel()} bytes where its shape asks for {size}")
        return str(grouping or _BITS), packed

    def kept(self, name: str) -> int:
        """As the base says. What groups keep follows from their number; bits are counted as they are packed."""
        grouping = self._groupings[name]
        if grouping:
            return math.prod(self.shapes[name]) // grouping.group * grouping.keep
        return count_bits(self._bits(name))

    def _bits(self, name: str) -> Tensor:
        """A mask as one bit a weight, whatever it is packed as; the last byte's padding is 0."""
        if self._groupings[name]:
            return pack_mask(self[name])
        bits = self.packed(name)[1]
        if used := math.prod(self.shapes[name]) % 8:
            bits[-1] &= (1 << used) - 1
        return bits

    def _read(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as handle:
                packed: Tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise self._damaged(name, error) from None
        if packed.dtype != torch.uint8 or packed.dim() != 1:
            raise self._damaged(name, f"{packed.dtype} of shape {tuple(packed.shape)} is no packed mask")
        return packed

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _shape(self, name: str, shape: Any) -> tuple[int, ...]:
        sizes = shape if isinstance(shape, list) else [None]
        if not all(type(size) is int and size >= 0 for size in sizes) or _entries_at_most(sizes) >= 2**63:
            raise self._damaged(name, f"its shape is {shorten(json.dumps(shape), 100)}")
        return tuple(sizes)

    def _grouping(self, name: str, encoding: Any) -> Grouping | None:
        try:
            return None if encoding == _BITS else Grouping.parse(str(encoding))
        except ValueError as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, how: object) -> InputError:
        return InputError(f"{self.path}, {name}: the mask is damaged ({how}).")


def _entries_at_most(sizes: Iterable[Any]) -> int:
    """What torch multiplies for the strides of a tensor, whether or not one of its sizes is 0."""
    return math.prod(max(int(size), 1) for size in sizes)


def _parse_header(header: str, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged (its header is not JSON: {error}).") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path} is damaged (its header is not a JSON object).")
    return parsed


class MaskFiles(PackedMasks):
    """Several mask files as one mapping."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises InputError: as MaskFile; or two files hold the same mask."""
        self._file_of: dict[str, MaskFile] = {}
        for file in map(MaskFile, paths):
            for name in file:
                if name in self._file_of:
                    raise InputError(f"{self._file_of[name].path} and {file.path} both hold a mask of {name}.")
                self._file_of[name] = file

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a mask."""
        return self._file_of[name].shape(name)

    def packed(self, name: str) -> tuple[str, Tensor]:
        """As the base says."""
        return self._file_of[name].packed(name)

    def kept(self, name: str) -> int:
        """As the base says."""
        return self._file_of[name].kept(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def removed_shares(masks: PackedMasks, base: Checkpoint) -> dict[str, float]:
    """Share of weights the masks remove: of the MLP weights ("mlp") and of the whole model ("model")."""
    removed = sum(math.prod(masks.shape(name)) - masks.kept(name) for name in masks)
    in_mlps = sum(math.prod(base.shape(name)) for name in masks)
    in_model = sum(math.prod(place.shape) for place in base.stored.values())
    return {"mlp": removed / in_mlps, "model": removed / in_model}


def apply_to_checkpoint(
    base: Checkpoint,
    masks: Mapping[str, Tensor],
    folder: Path,
    updates: Updates | None = None,
    *,
    tuned: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    history: Mapping[str, Any] | None = None,
    remember: Callable[[Path, Digests], object] | None = None,
) -> Contents:
    """Write base × masks into `folder`: removed weights are +0.0, what no update names is the base's byte for byte.

    Config, tokenizer, chat templates and licence come along, with the keys that older transformers read
    (`write_older_keys`), the base's model card as BASE_README.md. What configs refer to
    outside (`drop_references`) is left out and told; whatever else lies beside the weights stays behind.
    `dass.json` says what was written.

    Args:
        base: the dense checkpoint.
        masks: stored tensor name -> keep mask.
        folder: where to.
        updates: new values of the kept weights of some tensors, and tuned tensors whole; those replace the base's.
        tuned: the tensors without a mask that `updates` may hold.
        settings: what was asked for, for dass.json.
        history: how the base was pruned before (`dass.masks.pruned_record.history`), for dass.json.
        remember: is told the digests of each file of weights, md5 too, as they were written.

    Returns:
        What of the base's folder went along and what did not.

    Raises:
        InputError: the masks are for another base (a tensor is missing or has another shape), or not for the updates.
    """
    check_masks_fit(base, masks)
    if updates:
        updates.check_fit(masks, base, tuned)

    found = contents(base.folder)
    beside, dropped = write_beside(base.folder, found, folder)
    for each in dropped:
        logger.warning("Left out of the pruned checkpoint's %s: what they refer to is not in it.", each)
    written = base.copy(
        folder, lambda name, weight: pruned_weight(name, weight, masks, updates), md5=remember is not None
    )
    digests = {name: each.sha256 for name, each in written.items()}
    digests |= {name: sha256_file(folder / name) for name in [*found.weights, *beside] if name not in written}
    write_record(folder, digests, settings, history)
    if remember is not None:
        for name in written:
            remember(folder / name, written[name])
    return found


def pruned_weight(
    name: str, weight: Tensor, masks: Mapping[str, Tensor], updates: Updates | None = None
) -> Tensor | None:
    """What becomes of a stored tensor; None: it stays.

    Args:
        name: its stored name.
        weight: its value, which is changed in place where it has a mask and no update.
        masks, updates: as `apply_to_checkpoint`.
    """
    keep = masks.get(name)
    if updates and name in updates:
        return updates.weight(name, keep)
    return None if keep is None else zero_removed_(weight, keep)


def check_masks_fit(base: Checkpoint, masks: Mapping[str, Tensor]) -> None:
    """Raise InputError when the masks name a tensor that the base does not hold in that shape."""
    for name, mask in masks.items():
        if name not in base.stored:
            raise InputError(f"The masks name {name}, which {base.folder} does not hold: they belong to another base.")
        if base.shape(name) != tuple(mask.shape):
            raise InputError(f"{name}: the mask is {tuple(mask.shape)}, the weight {base.shape(name)}: another base.")
