"""The engine's side of the comparisons: the one place of the benchmarks that calls it."""

import time
from pathlib import Path

import torch
from torch import Tensor

import dass
from benchmarks.timing import synchronise
from dass.engine.pruner import LayerwisePruner
from dass.method.plan import DEFAULT_EPOCHS, plan
from dass.method.reconstruct import refit
from dass.model.streaming import StreamedDecoder


def prune_folder(
    folder_in: Path,
    folder_out: Path,
    input_ids_ST: Tensor,
    method: str,
    pattern: str,
    dtype: torch.dtype,
    update: str,
    fewest_steps: bool = False,
) -> None:
    """Prune a checkpoint folder at 50 % on the CPU and write the pruned checkpoint, layer by layer.

    `fewest_steps` counts for every re-fit of this process.
    """
    if fewest_steps:
        refit.__kwdefaults__ = {**(refit.__kwdefaults__ or {}), "iterations": 1}
    epochs = 1 if fewest_steps else DEFAULT_EPOCHS
    dass.prune_checkpoint(
        folder_in, folder_out, input_ids_ST, method, pattern=pattern, dtype=dtype, update=update, epochs=epochs
    )


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
