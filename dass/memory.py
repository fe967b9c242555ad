"""How much memory is free, on the host and on a CUDA device."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


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


def release_freed_memory() -> None:
    """Hand memory that was freed back to the system.

    glibc keeps freed pieces of its heap for later. What a layer leaves behind is cut differently from what the next one
    asks for, so that without this the process grows by tens of megabytes a layer.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # not Linux, or another C library
        return None


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
