"""A checkpoint folder read lazily, one tensor at a time, and written as a copy with some weights changed.

Reads `model.safetensors`, or the shards `model.safetensors.index.json` names. A copy keeps the shards, their headers
and the order of tensors byte for byte; only the data of changed tensors differs.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dass.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its dtype as safetensors spells it, its shape, and its bytes [begin, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of a checkpoint folder. Opening reads headers only.

    Attributes:
        folder: the folder.
        file_of: tensor name -> file name.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError: no safetensors, a shard is missing or truncated, or the index names an absent tensor."""
        self.folder = folder
        self._headers: dict[str, tuple[bytes, dict[str, StoredTensor]]] = {}
        index = folder / INDEX_FILE
        if (folder / SINGLE_FILE).is_file():
            self._read_header(SINGLE_FILE)
        elif index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            for shard in sorted(set(weight_map.values())):
                self._read_header(shard)
            for name, shard in weight_map.items():
                if name not in self._headers[shard][1]:
                    raise InputError(f"{index} says {shard} holds {name}, and it does not. Fetch the checkpoint again.")
        else:
            raise InputError(f"No {SINGLE_FILE} or {INDEX_FILE} in {folder}: expected a safetensors checkpoint.")
        self.file_of = {name: file for file, (_, tensors) in self._headers.items() for name in tensors}

    @property
    def files(self) -> list[str]:
        """Names of the safetensors files."""
        return list(self._headers)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor's place, in file order."""
        return {name: place for _, tensors in self._headers.values() for name, place in tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self.stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor.

        Raises:
            InputError: a type that is not pruned (float8, integers).
        """
        spelled = self.stored[name].dtype
        if spelled not in _DTYPES:
            raise InputError(f"{name} is stored as {spelled}: expected float32, bfloat16 or float16.")
        return _DTYPES[spelled]

    @property
    def main_dtype(self) -> torch.dtype:
        """Type of the largest tensor."""
        return self.dtype(max(self.stored, key=lambda name: self.stored[name].end - self.stored[name].begin))

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors to host memory. They are copies: the file may go away."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.file_of[name], []).append(name)
        loaded: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            with safe_open(self.folder / file, framework="pt") as handle:
                loaded |= {name: handle.get_tensor(name).clone() for name in wanted}
        return loaded

    def iterate(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, one in memory at a time."""
        for name in self.stored:
            yield name, self.load([name])[name]

    def copy(self, folder: Path, changed: Callable[[str, Tensor], Tensor | None]) -> None:
        """Write the same tensors to `folder`, some of them changed.

        Args:
            folder: where to; its files are made or overwritten, and synced to disk.
            changed: gets a tensor's name and value (float tensors only) and returns the new value, same shape and
                dtype, or None to keep it. At most one tensor is in memory at a time.
        """
        for file, (header, tensors) in self._headers.items():
            with (self.folder / file).open("rb") as source, (folder / file).open("wb") as target:
                target.write(header)
                for name, place in sorted(tensors.items(), key=lambda item: item[1].begin):
                    source.seek(place.begin)
                    _copy_tensor(source, target, name, place, changed)
                target.flush()
                os.fsync(target.fileno())
        if (self.folder / INDEX_FILE).is_file() and SINGLE_FILE not in self._headers:
            (folder / INDEX_FILE).write_bytes((self.folder / INDEX_FILE).read_bytes())

    def _read_header(self, file: str) -> None:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt"):  # the library's own checks: offsets, overlaps, total size
                pass
            with path.open("rb") as source:
                prefix = source.read(8)
                header = source.read(struct.unpack("<Q", prefix)[0])
        except FileNotFoundError:
            raise InputError(f"{path} is missing. Fetch the checkpoint again.") from None
        except SafetensorError as error:
            raise InputError(f"{path} is damaged or truncated ({error}). Fetch the checkpoint again.") from None
        entries: dict[str, Any] = json.loads(header)
        start = len(prefix) + len(header)
        tensors = {
            name: StoredTensor(
                entry["dtype"],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                start + entry["data_offsets"][1],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        self._headers[file] = (prefix + header, tensors)


def _copy_tensor(
    source: BinaryIO, target: BinaryIO, name: str, place: StoredTensor, changed: Callable[[str, Tensor], Tensor | None]
) -> None:
    size = place.end - place.begin
    dtype = _DTYPES.get(place.dtype)
    if dtype is not None and size:
        buffer = bytearray(source.read(size))
        before = torch.frombuffer(buffer, dtype=dtype).view(place.shape)
        after = changed(name, before)
        if after is None:
            target.write(buffer)
            return
        assert (after.shape, after.dtype) == (before.shape, before.dtype), name
        target.write(after.contiguous().view(-1).view(torch.uint8).numpy().data)
        return
    for begin in range(0, size, _CHUNK_BYTES):
        target.write(source.read(min(_CHUNK_BYTES, size - begin)))
