"""Processes that calibrate together: each takes a share of the batches, sums are merged, all make the same masks.

Started by torchrun (torch.distributed, gloo between CPUs, nccl between GPUs). Shares are runs of whole batches, so that
every batch is computed in the same shape whatever the number of processes; sums are float64, so that the order of
merging does not show in the float32 that masks are made from.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dass.errors import InputError

_TOLD_BYTES = 1024


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job.

    Attributes:
        rank: its number, 0 to `size` − 1. Rank 0 writes.
        size: how many there are.
        nodes: on how many machines.
    """

    rank: int = 0
    size: int = 1
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batches: Sequence[slice]) -> Sequence[slice]:
        """This rank's run of the batches, each a slice of the windows.

        Raises:
            InputError: there are fewer batches than processes.
        """
        count = len(batches)
        if count < self.size:
            raise InputError(
                f"{self.size} processes share {count} batches of windows ({batches[-1].stop} in all): expected at "
                "least one batch each. Lower engine.batch_tokens or engine.processes."
            )
        begin, end = (count * each // self.size for each in (self.rank, self.rank + 1))
        return batches[begin:end]

    def sum_(self, *tensors: Tensor) -> None:
        """Add up each tensor over all ranks, in place: afterwards every rank holds the total."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def of_first(self, value: float, device: torch.device) -> float:
        """What rank 0 has found: ranks that decide by it decide alike. `device` is where tensors are exchanged."""
        if self.size == 1:
            return value
        told = torch.tensor([value if self.is_first else 0.0], dtype=torch.float64, device=device)
        self.sum_(told)
        return told.item()

    def told(self, text: str, device: torch.device) -> list[str]:
        """What each rank says, by rank: at most `_TOLD_BYTES` of UTF-8 each. `device` as `of_first`."""
        said = text.encode()
        assert len(said) <= _TOLD_BYTES, "too long to be told"
        told = torch.zeros(self.size, _TOLD_BYTES, dtype=torch.uint8)
        told[self.rank, : len(said)] = torch.tensor(list(said), dtype=torch.uint8)
        told = told.to(device)
        self.sum_(told)
        return [bytes(row).rstrip(b"\0").decode() for row in told.tolist()]

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            torch.distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined_ranks(meet_in: Path | None = None) -> Iterator[Ranks]:
    """The ranks of the torchrun job this process was started by; alone when it was not.

    On CUDA each rank takes the device of its local number.

    Args:
        meet_in: a file, not there yet, in which ranks on one machine find each other. Without it they meet where
            torchrun says, at a port that listens to whatever network the machine is in.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    place: dict[str, Any] = {}
    if meet_in is not None:
        store = torch.distributed.FileStore(str(meet_in), size)  # type: ignore[attr-defined]
        place = {"store": store, "rank": int(os.environ["RANK"]), "world_size": size}
    torch.distributed.init_process_group("nccl" if on_cuda else "gloo", **place)
    try:
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), nodes)
    finally:
        torch.distributed.destroy_process_group()
