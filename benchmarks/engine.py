"""The engine's side of the comparisons: the one place of the benchmarks that calls it."""

import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import synchronise
from dass.checkpoint import Checkpoint
from dass.engine import LayerwisePruner, plan
from dass.masks import apply_to_checkpoint
from dass.streaming import StreamedDecoder


def prune_folder(folder_in: Path, folder_out: Path, input_ids_ST: Tensor, method: str, dtype: torch.dtype) -> None:
    """Prune a checkpoint folder at 50 % on the CPU and write the pruned checkpoint, layer by layer."""
    pruner = LayerwisePruner(
        StreamedDecoder(folder_in, torch.device("cpu"), dtype), input_ids_ST, plan(method, sparsity=0.5)
    )
    checkpoint = Checkpoint(folder_in)
    layers = sum(name.endswith("down_proj.weight") for name in checkpoint.stored)
    keep = {name: mask for index in range(layers) for name, mask in pruner.prune_layer(index).keep.items()}
    folder_out.mkdir(parents=True, exist_ok=True)
    apply_to_checkpoint(checkpoint, keep, folder_out)


def time_layers(folder: Path, input_ids_ST: Tensor, device: torch.device) -> tuple[float, list[float]]:
    """Find DaSS masks of every layer, streaming the weights from `folder`, and throw them away.

    Returns:
        Seconds until the windows are embedded, and seconds of each layer: its weights read, pruned, propagated.
    """
    began = time.perf_counter()
    decoder = StreamedDecoder(folder, device)
    pruner = LayerwisePruner(decoder, input_ids_ST, plan("dass", sparsity=0.5))
    synchronise(device)
    embedded = time.perf_counter() - began
    seconds: list[float] = []
    for index in range(len(decoder)):
        began = time.perf_counter()
        pruner.prune_layer(index)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return embedded, seconds
