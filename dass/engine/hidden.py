"""The hidden states of the calibration windows: one buffer, wherever it fits.

Axes: S windows, B windows of a batch, T tokens a window, H hidden. The buffer is (S, T, H) in one type; a layer reads
every window once in order and writes its outputs over them. It lies on the device that computes, in host memory
(page-locked where that is CUDA), or in a memory-mapped file. The place never changes a bit of what is read.
"""

import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dass.errors import InputError
from dass.files import complete_file, naming
from dass.model.memory import free_device_memory, free_host_memory
from dass.model.prefetch import Prefetcher
from dass.model.tensor_bytes import DTYPES, bytes_of

Place = Literal["auto", "device", "host", "disk"]
"""Where the buffer lies; "auto" is the first of device, host and disk that it fits in."""

DEVICE_SHARE = 0.5
"""Of the free device memory, what "auto" lets the buffer take: the rest is for a layer and what it computes."""

HOST_SHARE = 0.6
"""Of the available host memory, likewise."""

_NAME = "hidden_states"


class HiddenStates:
    """A buffer (S, T, H) of hidden states, computed with on `device`.

    Attributes:
        shape: (S, T, H).
        place: "device", "host" or "disk". On a CPU the first two are the same.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        place: Place = "auto",
        folder: Path | None = None,
    ) -> None:
        """Reserve the memory; what it holds is undefined until written.

        Args:
            shape: (S, T, H).
            dtype: a float type.
            device: where `read` gives tensors.
            place: where the buffer lies.
            folder: where the file is made for "disk"; None is the system's temporary folder, which may be in memory.

        Raises:
            InputError: an unknown place, or one with too little memory.
            OSError: the disk has no room.
        """
        self.shape, self._dtype, self.device = shape, dtype, device
        self.place = choose_place(self.nbytes, device, place)
        self._is_away = device.type == "cuda" and self.place != "device"  # to be copied before use
        if self.place == "disk":
            self._states_STH = _mapped_file(shape, dtype, folder)
        else:
            self._states_STH = self._allocate()

    @property
    def nbytes(self) -> int:
        """Of the buffer."""
        windows, length, hidden = self.shape
        return windows * length * hidden * self._dtype.itemsize

    def read(self, rows: slice) -> Tensor:
        """Windows `rows` on the device, (B, T, H): a view where nothing has to be copied, so change it by `write`."""
        return self._states_STH[rows].to(self.device, non_blocking=True)

    def write(self, rows: slice, value_BTH: Tensor) -> None:
        """Replace windows `rows`."""
        # Page-locked memory is written while we go on: every later read waits for it in stream order.
        self._states_STH[rows].copy_(value_BTH, non_blocking=self._is_away and self.place == "host")

    def batches(self, rows: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        """Batches of windows, in order: which they are, and their hidden states (B, T, H) on the device.

        Windows that were already given may be written while this runs. Where batches have to be copied to a CUDA
        device, the next one is copied while this one is computed with.
        """
        if self._is_away and rows:
            yield from self._batches_copied_ahead(rows)
        else:
            for some in rows:
                yield some, self.read(some)

    def save(self, path: Path) -> None:
        """Write the buffer as a safetensors file, whole or not at all; one window is copied at a time.

        Raises:
            OSError: the disk has no room; a file that was there stays.
        """
        spelled = next(spelled for spelled, dtype in DTYPES.items() if dtype == self._dtype)
        entry = {"dtype": spelled, "shape": list(self.shape), "data_offsets": [0, self.nbytes]}
        header = json.dumps({_NAME: entry}).encode()
        header += b" " * (-len(header) % 8)  # the format's alignment
        self._wait()
        with complete_file(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for window_TH in self._states_STH:
                file.write(bytes_of(window_TH.cpu()))

    def load(self, path: Path) -> None:
        """Replace the buffer with what `save` wrote.

        Raises:
            InputError: the file is missing, damaged, or holds hidden states of another shape or type.
        """
        try:
            with safe_open(path, framework="pt") as handle:
                stored_STH = handle.get_slice(_NAME)
                shape, dtype = tuple(stored_STH.get_shape()), DTYPES.get(stored_STH.get_dtype())
                if (shape, dtype) != (self.shape, self._dtype):
                    raise InputError(
                        f"{path} holds hidden states of shape {shape} in {dtype}: expected {self.shape} in "
                        f"{self._dtype}. It belongs to another run; delete it."
                    )
                self._wait()
                for window in range(self.shape[0]):
                    self._states_STH[window].copy_(stored_STH[window])
        except (FileNotFoundError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}). Delete it and start the run again.") from None

    def close(self) -> None:
        """Give the memory, or the disk's blocks, back. The buffer cannot be used any more."""
        self._wait()
        self._states_STH = torch.empty(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(self) -> Tensor:
        where = self.device if self.place == "device" else torch.device("cpu")
        try:
            return torch.empty(self.shape, dtype=self._dtype, device=where, pin_memory=self._is_away)
        except RuntimeError as error:  # torch's own, on a device and on the host
            raise InputError(
                f"The hidden states of {self.shape[0]} windows need {self.nbytes / 2**30:.1f} GiB, more than is free "
                f"on {where}. Set engine.hidden_states to host or disk, or calibrate with fewer or shorter windows."
            ) from error

    def _wait(self) -> None:
        """Until copies into host memory have arrived."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _batches_copied_ahead(self, rows: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        """Batch i + 1 is on its way, on a stream of its own, when batch i is given out."""
        compute, copy = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        on_host: Prefetcher[Tensor] = Prefetcher(lambda number: self._page_locked(rows[number]), len(rows))

        def start(number: int) -> tuple[Tensor, torch.cuda.Event]:
            host_BTH = on_host.get(number)
            # Made on the compute stream, whose memory it returns to; that stream waits for the copy before using it.
            there_BTH = torch.empty_like(host_BTH, device=self.device)
            copy.wait_stream(compute)  # earlier writes of these windows, and earlier use of that memory
            with torch.cuda.stream(copy):
                there_BTH.copy_(host_BTH, non_blocking=True)
            return there_BTH, copy.record_event()

        under_way = start(0)
        try:
            for number, some in enumerate(rows):
                batch_BTH, arrived = under_way
                if number + 1 < len(rows):
                    under_way = start(number + 1)
                compute.wait_event(arrived)
                yield some, batch_BTH
        finally:
            compute.wait_event(under_way[1])  # left early: its memory is not given away while the copy writes to it
            on_host.close()

    def _page_locked(self, rows: slice) -> Tensor:
        states_BTH = self._states_STH[rows]
        return states_BTH.pin_memory() if self.place == "disk" else states_BTH


def put_away(values: Tensor, place: Place, folder: Path | None) -> Tensor:
    """The same values where `place` says, for good; `place` is not "auto"."""
    if place == "disk":
        there = _mapped_file(values.shape, values.dtype, folder)
        there.copy_(values)
        return there
    return values if place == "device" else values.cpu()


def choose_place(size: int, device: torch.device, place: Place) -> Place:
    """Where `size` bytes go; never "auto".

    Raises:
        InputError: an unknown place.
    """
    if place not in get_args(Place):
        raise InputError(f"engine.hidden_states is {place!r}: expected one of {', '.join(get_args(Place))}.")
    if place != "auto":
        return place
    if device.type == "cuda" and size <= DEVICE_SHARE * free_device_memory(device):
        return "device"
    # Torch rounds page-locked memory up to a power of two.
    taken = 1 << (size - 1).bit_length() if device.type == "cuda" else size
    return "host" if taken <= HOST_SHARE * free_host_memory() else "disk"


def _mapped_file(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """A tensor in a file without a name: its blocks are free again when the tensor is gone, even after a kill."""
    size = math.prod(shape)
    descriptor, name = tempfile.mkstemp(prefix="dass-hidden-states-", dir=folder)
    try:
        # Without its blocks, a full disk would be a SIGBUS in the middle of a run instead of an OSError here.
        with naming(Path(name)):
            os.posix_fallocate(descriptor, 0, size * dtype.itemsize)
        return torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            os.unlink(name)
