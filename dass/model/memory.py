"""How much memory is free, on the host and on a CUDA device."""

import ctypes
import math
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dass.model.checkpoint import Checkpoint

MEMORY_SHARE = 0.7
"""Of the free memory, what weights may take: the rest is for what is computed."""

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE_BYTES = 8 << 20
_KEPT_BYTES = 256 << 20  # freed memory at the heap's end that is kept until a layer is done


def free_device_memory(device: torch.device) -> int:
    """Bytes that torch can still allocate on a CUDA device: the driver's, and what torch holds without using."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host_memory() -> int:
    """Bytes that can be used without swapping, inside the container's limit if there is one."""
    fields = _fields(_MEMINFO)
    if "MemAvailable:" in fields:
        available = fields["MemAvailable:"] * 1024
    else:  # not Linux
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _number(_CGROUP / "memory.max")
    used = _number(_CGROUP / "memory.current")
    if limit is None or used is None:
        return available
    reclaimable = _fields(_CGROUP / "memory.stat").get("inactive_file", 0)
    return max(0, min(available, limit - used + reclaimable))


def weights_fit(checkpoint: "Checkpoint", dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a checkpoint's weights take at most MEMORY_SHARE of what is free, on the host and on a CUDA device."""
    free = free_host_memory()  # where weights lie first
    if device.type == "cuda":
        free = min(free, free_device_memory(device))
    weights = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.stored)
    return weights * dtype.itemsize <= MEMORY_SHARE * free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of a device or of the host, has said that there is no more."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_freed_memory() -> None:
    """Hand memory that was freed back to the system.

    glibc keeps freed pieces of its heap for later. What a layer leaves behind is cut differently from what the next one
    asks for, so that without this the process grows by tens of megabytes a layer.
    """
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)


def keep_large_blocks_apart() -> None:
    """Let the C library take each large block from the system, and give it back when it is freed.

    Its own limit for that moves up to 32 MiB with what is freed, and blocks below it cut up the heap: a 7B-shaped model
    grew by 27 MB a layer. Smaller blocks, which come and go all the time, stay in the heap: there a new block costs no
    page faults. Counts for the whole process; does nothing where the C library is another.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@cache
def _libc() -> "ctypes.CDLL | None":
    try:
        libc = ctypes.CDLL("libc.so.6")
        _ = libc.malloc_trim, libc.mallopt
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
    return libc


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _fields(path: Path) -> dict[str, int]:
    """First word of a line -> the number behind it."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
