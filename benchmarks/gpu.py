"""The engine on a GPU: LLaMA-2-7B's shape at 128 × 2048 tokens, and what 2:4 kernels gain in each layout.

    python -m benchmarks.gpu [--layers 32] [--scratch FOLDER] [--keep] [--dry-run]

Seconds a layer (weights streamed from disk, masks found, the pruned layer run), the share of the card's own bfloat16
matrix-product rate, peak device memory. No pruned checkpoint is written. Fewer than 32 layers give an extrapolated
total, labelled so. Without a GPU, or with --dry-run, the same code runs on the CPU at a small size, kernels aside.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig

from benchmarks import command, markdown
from benchmarks.engine import time_layers
from benchmarks.flops import model_flops
from benchmarks.kernels import LAYOUTS, compare_kernel
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import ensure_checkpoint, llama_2_7b, llama_config, random_tokens
from benchmarks.results import Record, Results
from benchmarks.timing import matmul_rate
from dass.method.methods import PROJECTIONS

FULL_LAYERS = 32


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        config: the model's shape.
        windows: calibration windows.
        length: tokens a window.
        matmul: side of the square matrices that the device's rate is measured on.
        kernel_tokens: inputs of one kernel call.
    """

    config: LlamaConfig
    windows: int
    length: int
    matmul: int
    kernel_tokens: int


_SMALL = llama_config(layers=2, hidden=64, intermediate=128, heads=4, vocabulary=512, context=64)
DRY_RUN = Size(_SMALL, windows=2, length=32, matmul=256, kernel_tokens=64)


def tables(records: list[Record]) -> str:
    """Pruning, then kernels."""
    pruning = [_pruning_row(each) for each in records if each["what"] == "pruning"]
    header = ["layers", "tokens", "a layer", "total", "rate", "of the matmul rate", "peak device memory"]
    kernels = [_kernel_row(each) for each in records if each["what"] == "kernel"]
    kernel_header = ["layout", "matrix", "O × C", "dense", "2:4 kernel", "speed-up"]
    return f"{markdown.table(header, pruning)}\n\n{markdown.table(kernel_header, kernels)}"


def _pruning_row(record: Record) -> list[str]:
    seconds: list[float] = record["layer_seconds"]
    rate = record["flops"] / sum(seconds)
    total = markdown.seconds(record["embedding_seconds"] + sum(seconds))
    if record["layers"] != FULL_LAYERS:
        whole = record["embedding_seconds"] + FULL_LAYERS * median(seconds)
        total += f" ({markdown.seconds(whole)} extrapolated to {FULL_LAYERS} layers)"
    device_bytes = record["peak_device_bytes"]
    return [
        str(record["layers"]),
        f"{record['windows']} × {record['length']}",
        markdown.seconds(median(seconds)),
        total,
        f"{rate / 1e12:.3g} TFLOP/s",
        f"{rate / record['matmul_flops_per_second']:.0%} of {record['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s",
        "—" if device_bytes is None else markdown.gigabytes(device_bytes),
    ]


def _kernel_row(record: Record) -> list[str]:
    what = [record["layout"], record["projection"], " × ".join(map(str, record["shape"]))]
    if not record["has_kernel"]:
        return [*what, "—", "no kernel: not 2:4 along in_features", "—"]
    if "sparse_seconds" not in record:
        return [*what, "—", "2:4 along in_features, not timed", "—"]
    dense, sparse = record["dense_seconds"], record["sparse_seconds"]
    return [*what, f"{1e3 * dense:.3f} ms", f"{1e3 * sparse:.3f} ms", f"{dense / sparse:.2f}×"]


def main() -> None:
    parser = command.parser(__doc__, "gpu.json")
    parser.add_argument("--layers", type=int, default=FULL_LAYERS)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens a window")
    parser.add_argument("--kernel-tokens", type=int, default=4096, help="inputs of one kernel call")
    parser.add_argument("--scratch", type=Path, default=FOLDER / "7b", help="where the checkpoint is written")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU at a small size")
    arguments = parser.parse_args()
    if is_dry := arguments.dry_run or not torch.cuda.is_available():
        print("Dry run on the CPU at a small size" + ("." if arguments.dry_run else ": torch finds no GPU."))
        size = DRY_RUN
        results = Results(arguments.results.with_stem(f"{arguments.results.stem}-dry-run"), fresh=True)
    else:
        size = Size(llama_2_7b(arguments.layers), arguments.windows, arguments.length, 8192, arguments.kernel_tokens)
        results = Results(arguments.results, arguments.fresh)
    device = torch.device("cpu" if is_dry else "cuda")
    measure_pruning(results, size, device, arguments.scratch.resolve() / ("dry-run" if is_dry else ""), arguments.keep)
    measure_kernels(results, size, device)
    print(tables(results.records))


def measure_kernels(results: Results, size: Size, device: torch.device) -> None:
    """Every layout and matrix that `results` does not hold yet."""
    for layout in LAYOUTS:
        for projection in PROJECTIONS:
            key = {"what": "kernel", "layout": layout, "projection": projection, "tokens": size.kernel_tokens}
            if results.find(key) is None:
                hidden, intermediate = size.config.hidden_size, size.config.intermediate_size
                results.add(key, compare_kernel(layout, projection, hidden, intermediate, size.kernel_tokens, device))


def measure_pruning(results: Results, size: Size, device: torch.device, scratch: Path, keep: bool) -> None:
    """Prune the shape, unless `results` holds it. The checkpoint in `scratch` goes at the end, unless `keep`."""
    layers = size.config.num_hidden_layers
    key = {"what": "pruning", "layers": layers, "windows": size.windows, "length": size.length}
    if results.find(key) is not None:
        return
    folder = scratch / f"{layers}-layers"
    try:
        ensure_checkpoint(folder, size.config)
        input_ids_ST = random_tokens(size.windows, size.length, size.config.vocab_size)
        rate = matmul_rate(size.matmul, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        embedding_seconds, layer_seconds = time_layers(folder, input_ids_ST, device)
        figures: Record = {
            "embedding_seconds": embedding_seconds,
            "layer_seconds": layer_seconds,
            "flops": model_flops(size.config, size.windows, size.length),
            "matmul": size.matmul,
            "matmul_flops_per_second": rate,
            "peak_device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        }
        results.add(key, figures)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    command.run(main)
