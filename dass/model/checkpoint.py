"""A checkpoint folder read lazily, one tensor at a time, and written as a copy with some weights changed.

Reads `model.safetensors`, or the shards `model.safetensors.index.json` names. A copy keeps the shards, their headers
and the order of tensors byte for byte; only the data of changed tensors differs.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dass.digests import Digests, Hashing
from dass.errors import InputError
from dass.model.checkpoint_folder import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, read_weight_map, weight_files
from dass.model.prefetch import one_ahead
from dass.model.tensor_bytes import DTYPES, bytes_of
from dass.sync_behind import SyncBehind

_BESIDE_WEIGHTS = {"I64", "BOOL"}  # position ids, attention masks
_CHUNK_BYTES = 1 << 24
_FILES_AT_ONCE = 2
_KEPT_BYTES = 1 << 27
_READ_AHEAD_BYTES = 1 << 17  # Linux reads no more ahead than a disk's own setting, by default this, and drops the rest
_AGAIN = "Fetch the checkpoint again."
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        """Read the index and the headers.

        Raises:
            InputError: no safetensors, a shard is missing or truncated, or the index is damaged, names an absent tensor
                or a file outside the folder, or does not name a tensor that a shard holds.
        """
        self.folder = folder
        self._headers: dict[str, tuple[bytes, dict[str, StoredTensor]]] = {}
        for file in weight_files(folder):
            self._read_header(file)
        if SINGLE_FILE not in self._headers:
            index, weight_map = folder / INDEX_FILE, read_weight_map(folder)
            for name, shard in weight_map.items():
                if name not in self._headers[shard][1]:
                    raise InputError(f"{index} says {shard} holds {name}, and it does not. {_AGAIN}")
            for shard, (_, tensors) in self._headers.items():
                for name in tensors:
                    if weight_map.get(name) != shard:  # transformers reads it all the same: one of two, or one too many
                        raise InputError(f"{shard} holds {name}, and {index} does not say so. {_AGAIN}")
        self.file_of = {name: file for file, (_, tensors) in self._headers.items() for name in tensors}
        if not self.file_of:
            raise InputError(f"{folder} holds no tensor: expected a model's weights. {_AGAIN}")

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
        if spelled not in DTYPES:
            raise InputError(
                f"{name} is stored as {spelled}: expected float32, bfloat16 or float16. "
                "Take the checkpoint that is not quantized, or dequantize this one and save it again."
            )
        return DTYPES[spelled]

    def check_prunable(self) -> None:
        """Refuse quantized weights, before any work.

        Raises:
            InputError: a matrix, or a stack of them, of a type that is not pruned (float8, packed integers), or a
                config that says the weights are quantized.
        """
        for name, place in self.stored.items():
            if len(place.shape) in (2, 3) and place.dtype not in _BESIDE_WEIGHTS:
                self.dtype(name)
        config = self._config()
        for quantization in filter(None, map(_quantization, [config, *config.values()])):
            method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
            raise InputError(
                f"{self.folder / CONFIG_FILE} has a quantization_config ({method}): expected weights that are not "
                "quantized. Take the checkpoint before quantization, or dequantize this one and save it again."
            )

    @property
    def stored_bytes(self) -> int:
        """Size of all tensors."""
        return sum(place.end - place.begin for place in self.stored.values())

    @property
    def main_dtype(self) -> torch.dtype:
        """Type of the largest tensor."""
        return self.dtype(max(self.stored, key=lambda name: self.stored[name].end - self.stored[name].begin))

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors to host memory. They are copies: the file may go away.

        Raises:
            InputError: a type that is not pruned, or a file that was cut short since it was opened.
        """
        loaded = {name: torch.empty(self.shape(name), dtype=self.dtype(name)) for name in names}
        for name, out in loaded.items():
            self.read_into(name, out)
        return loaded

    def read_into(self, name: str, out: Tensor) -> None:
        """Read one tensor into a tensor of its shape in host memory, without a copy where type and strides allow."""
        assert out.shape == self.shape(name), name
        if out.dtype != self.dtype(name) or not out.is_contiguous():
            out.copy_(self.load([name])[name])
            return
        path, place = self.folder / self.file_of[name], self.stored[name]
        with path.open("rb") as source:
            source.seek(place.begin)
            _read_exactly(source, out, path)

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read tensors into its own cache, which is none of this process's memory.

        It goes on beside whatever comes next. A system that cannot be asked, or a file that is gone, is no matter here.
        """
        advise = getattr(os, "posix_fadvise", None)
        if advise is None:
            return
        for file, places in _by_file(self, names).items():
            with suppress(OSError), (self.folder / file).open("rb") as source:
                for place in places:
                    for begin in range(place.begin, place.end, _READ_AHEAD_BYTES):
                        size = min(_READ_AHEAD_BYTES, place.end - begin)
                        advise(source.fileno(), begin, size, os.POSIX_FADV_WILLNEED)

    def bits(self, name: str) -> Tensor:
        """A tensor's bits as integers of its width, in its shape. Types that torch does not know come as bytes.

        For comparing: there NaN equals itself, and −0.0 is not +0.0.

        Raises:
            InputError: the file was cut short since it was opened.
        """
        path, place = self.folder / self.file_of[name], self.stored[name]
        raw = torch.empty(place.end - place.begin, dtype=torch.uint8)
        with path.open("rb") as source:
            source.seek(place.begin)
            _read_exactly(source, raw, path)
        entries = math.prod(place.shape)
        width = _INTEGERS.get(len(raw) // entries) if entries and len(raw) % entries == 0 else None
        return raw if width is None else raw.view(width).view(place.shape)

    def header(self, file: str) -> bytes:
        """A file's bytes up to the first tensor's."""
        return self._headers[file][0]

    def iterate(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, one in memory at a time."""
        for name in self.stored:
            yield name, self.load([name])[name]

    def copy(
        self, folder: Path, changed: Callable[[str, Tensor], Tensor | None], md5: bool = False
    ) -> dict[str, Digests]:
        """Write the same tensors to `folder`, some of them changed.

        Args:
            folder: where to; its files are made or overwritten, and synced to disk.
            changed: gets a tensor's name and value (float tensors only) and returns the new value, same shape and
                dtype, or None to keep it. Called in a thread, for one tensor while the one before it is hashed and
                written. Two files are written at once, as one core hashes slower than they are read: at most four
                tensors are in memory.
            md5: whether the digests have one, too.

        Returns:
            Safetensors file -> its digests, of the bytes as they were written: none is read again.
        """
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="dass-copy") as threads:
            digests = list(threads.map(lambda file: self._copy_file(folder / file, file, changed, md5), self._headers))
        if (self.folder / INDEX_FILE).is_file() and SINGLE_FILE not in self._headers:
            (folder / INDEX_FILE).write_bytes((self.folder / INDEX_FILE).read_bytes())
        return dict(zip(self._headers, digests, strict=True))

    def _copy_file(
        self, target: Path, file: str, changed: Callable[[str, Tensor], Tensor | None], md5: bool
    ) -> Digests:
        hashing = Hashing(md5)
        with SyncBehind() as behind, ThreadPoolExecutor(1) as beside, behind.file(target) as copy:
            for part in one_ahead(self._parts(file, changed)):
                hashed = beside.submit(hashing.update, part)
                copy.write(part)
                hashed.result()
                del part, hashed  # before the next but one is in memory
        return hashing.digests()

    def _parts(self, file: str, changed: Callable[[str, Tensor], Tensor | None]) -> Iterator[bytes | memoryview]:
        """What a file's copy consists of, in order. Two may be held: the third takes the memory of the first."""
        header, tensors = self._headers[file]
        yield header
        memory = _Alternating()
        with (self.folder / file).open("rb") as source:
            for name, place in sorted(tensors.items(), key=lambda item: item[1].begin):
                source.seek(place.begin)
                if place.dtype in DTYPES:
                    before = memory.of(place.end - place.begin).view(DTYPES[place.dtype]).view(place.shape)
                    _read_exactly(source, before, self.folder / file)
                    yield bytes_of(_changed(name, before, changed))
                else:
                    for begin in range(place.begin, place.end, _CHUNK_BYTES):
                        yield source.read(min(_CHUNK_BYTES, place.end - begin))

    def _config(self) -> dict[str, Any]:
        """The config, or nothing where there is none to read: whoever builds a model from it says so."""
        try:
            config = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    def _read_header(self, file: str) -> None:
        path = self.folder / file
        try:
            # The library's own checks: the header's length (in the file, at most 100 MB), offsets, overlaps, total size
            with safe_open(path, framework="pt"):
                pass
            with path.open("rb") as source:
                prefix = source.read(8)
                header = source.read(struct.unpack("<Q", prefix)[0])
        except FileNotFoundError:
            raise InputError(f"{path} is missing. {_AGAIN}") from None
        except SafetensorError as error:
            raise InputError(f"{path} is damaged or truncated ({error}). {_AGAIN}") from None
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
        for name, place in tensors.items():
            if math.prod(max(size, 1) for size in place.shape) >= 2**63:  # no bytes are stored where one size is 0
                raise InputError(f"{path} holds {name} of shape {place.shape}, which no tensor has. {_AGAIN}")
        self._headers[file] = (prefix + header, tensors)


class _Alternating:
    """Memory for two tensors, in turn: a fresh page is zeroed first, which takes as long as reading it."""

    def __init__(self) -> None:
        self._next, self._other = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        """So many bytes, uint8 (size,), of the memory that was not given last; what is large is held by nobody."""
        if size > _KEPT_BYTES:
            return torch.empty(size, dtype=torch.uint8)
        self._next, self._other = self._other, self._next
        if len(self._other) < size:
            self._other = torch.empty(size, dtype=torch.uint8)
        return self._other[:size]


def _by_file(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, list[StoredTensor]]:
    found: dict[str, list[StoredTensor]] = {}
    for name in names:
        found.setdefault(checkpoint.file_of[name], []).append(checkpoint.stored[name])
    return found


def _quantization(config: Any) -> Any:
    """What a config, or a part of one, says of how weights were quantized."""
    return config.get("quantization_config") if isinstance(config, dict) else None


def _read_exactly(source: BufferedReader, out: Tensor, path: Path) -> None:
    """Fill a contiguous tensor from where the file stands. Not through a memory map, whose pages would count twice."""
    wanted = bytes_of(out)
    if source.readinto(wanted) != len(wanted):
        raise InputError(f"{path} was cut short while it was read. {_AGAIN}")


def _changed(name: str, before: Tensor, changed: Callable[[str, Tensor], Tensor | None]) -> Tensor:
    after = changed(name, before)
    if after is None:
        return before
    assert (after.shape, after.dtype) == (before.shape, before.dtype), name
    return after.contiguous()
