"""Tokens a second of the evaluation against the best plain loop over the same windows, and against the machine.

    python -m benchmarks.evaluation [--params params.yaml ...] [--dtype bfloat16] [--turns 3]

The plain loop asks the model for all logits of a batch and torch for their cross entropy; every batch size and thread
count is tried, and the fastest counts. All run in turn in one process, on the same model in memory, and are compared
within each turn: a machine drifts more between turns. In each turn the machine's rate on the model's own matrices is
measured as well: the counted operations at that rate are the floor. The windows are those of the calibration set.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks import command, markdown
from benchmarks.flops import forward_flops, forward_shapes
from benchmarks.paths import FOLDER, ROOT
from benchmarks.prepare import prepare_base
from benchmarks.results import Record, Results
from benchmarks.speed import DTYPES
from benchmarks.timing import shapes_rate
from dass.measures.losses import mean_loss
from dass.model.pretrained import load_model
from tasks.workspace.settings import load_settings

BATCHES = (1, 2, 4, 8)
THREADS = tuple(sorted({1, torch.get_num_threads()}))


def table(records: list[Record]) -> str:
    """One row a model and type: the fastest plain loop, and what `dass` runs at."""
    header = ["model, type", "ids", "windows", "plain loop", "tokens/s", "dass, tokens/s", "by turn"]
    header += ["of the floor", "largest difference"]
    rows = []
    for model, dtype in dict.fromkeys((each["model"], each["dtype"]) for each in records):
        own = [each for each in records if (each["model"], each["dtype"]) == (model, dtype)]
        tokens = own[0]["windows"] * (own[0]["length"] - 1)
        taken: dict[str, dict[int, float]] = {}
        for each in own:
            taken.setdefault(each["how"], {})[each["turn"]] = each["seconds"]
        floor = {each["turn"]: each["flops"] / each["rate"] for each in own if each["how"] == "dass"}
        ours = taken.pop("dass")
        ratios = {how: [theirs[turn] / ours[turn] for turn in theirs if turn in ours] for how, theirs in taken.items()}
        best = min(ratios, key=lambda how: median(ratios[how]))
        losses = [each["loss"] for each in own]
        rows.append(
            [
                f"{model}, {dtype}",
                f"{own[0]['vocabulary']:,}",
                f"{own[0]['windows']} × {own[0]['length']}",
                best,
                f"{tokens / median(taken[best].values()):.0f}",
                f"{tokens / median(ours.values()):.0f}",
                f"{median(ratios[best]):.2f} ({min(ratios[best]):.2f} to {max(ratios[best]):.2f})",
                f"{median(floor[turn] / seconds for turn, seconds in ours.items()):.0%}",
                f"{max(losses) - min(losses):.1e} nats",
            ]
        )
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "evaluation.json")
    default = [ROOT / "params.yaml", ROOT / "examples/gemma-3-270m/params.yaml"]
    parser.add_argument("--params", type=Path, nargs="+", default=default, help="one params.yaml per model")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="what is computed in")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="thread counts of the plain loop")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for params in arguments.params:
        name = load_settings(params).register_.model
        workspace = prepare_base(params.resolve(), FOLDER / name)
        windows_WL = load_file(workspace.calibration / "tokens.safetensors")["input_ids"][: arguments.windows]
        for dtype in arguments.dtype:
            _measure(results, name, load_model(workspace.base, getattr(torch, dtype)), windows_WL, arguments)


def _measure(results: Results, name: str, model: PreTrainedModel, windows_WL: Tensor, arguments: Namespace) -> None:
    ways: dict[str, tuple[int, Callable[[], float]]] = {"dass": (max(THREADS), lambda: mean_loss(model, windows_WL))}
    for batch in (each for each in BATCHES if each <= len(windows_WL)):
        for threads in arguments.threads:
            told = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            ways[told] = threads, lambda batch=batch: _plain_loop(model, windows_WL, batch)  # type: ignore[misc]
    _plain_loop(model, windows_WL[:1], 1)  # whoever comes first would else pay for the first touch of the weights
    config: Any = model.config.get_text_config()
    windows, length = windows_WL.shape
    what = {"model": name, "dtype": str(model.dtype).removeprefix("torch."), "vocabulary": config.vocab_size}
    for turn in range(arguments.turns):
        for how, (threads, run) in ways.items():
            key: Record = {**what, "how": how, "windows": windows, "length": length, "turn": turn}
            if results.find(key) is None:
                torch.set_num_threads(threads)
                began = time.perf_counter()
                loss = run()
                found: Record = {"seconds": time.perf_counter() - began, "loss": loss}
                if how == "dass":
                    found["flops"] = forward_flops(config, windows, length)
                    found["rate"] = shapes_rate(forward_shapes(config), model.dtype)
                print(results.add(key, found), flush=True)


@torch.inference_mode()
def _plain_loop(model: PreTrainedModel, windows_WL: Tensor, batch: int) -> float:
    total = 0.0
    for ids_BL in windows_WL.split(batch):
        logits_NV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1].flatten(0, 1)
        total += nn.functional.cross_entropy(logits_NV.float(), ids_BL[:, 1:].flatten(), reduction="sum").item()
    return total / windows_WL[:, 1:].numel()


if __name__ == "__main__":
    command.run(main)
