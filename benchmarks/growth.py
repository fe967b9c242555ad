"""How time and peak memory grow with the number of layers and with the number of tokens.

    python -m benchmarks.growth [--layers 8 16 32] [--windows 8 16 32 64] [--repeats 3]

Random LLaMA checkpoints of one width, DaSS at 50 %. Layers grow over 16 windows, windows grow over 8 layers.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import command, job, markdown
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import llama_config, write_checkpoint, write_tokens
from benchmarks.results import Record, Results

LAYERS, WINDOWS = (8, 16, 32), (8, 16, 32, 64)
FIXED_LAYERS, FIXED_WINDOWS = 8, 16
HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 512, 1408, 8, 4096
RUNS: tuple[tuple[job.Side, str], ...] = (("reference", "float32"), ("engine", "float32"), ("engine", "bfloat16"))


def tables(records: list[Record]) -> str:
    """Two tables: by layers and by windows."""
    by_layers = [each for each in records if each["windows"] == FIXED_WINDOWS]
    by_windows = [each for each in records if each["layers"] == FIXED_LAYERS]
    length = records[0]["length"]
    return "\n\n".join(
        [
            f"**Layers grow** (H {HIDDEN}, I {INTERMEDIATE}, {FIXED_WINDOWS} windows of {length} tokens)",
            _table(by_layers, "layers"),
            f"**Windows grow** ({FIXED_LAYERS} layers)",
            _table(by_windows, "windows"),
        ]
    )


def _table(records: list[Record], axis: str) -> str:
    header = [axis, *(f"{side} {dtype}, {what}" for side, dtype in RUNS for what in ("time", "memory"))]
    rows = []
    for size in sorted({each[axis] for each in records}):
        row = [str(size)]
        for side, dtype in RUNS:
            runs = [each for each in records if (each[axis], each["side"], each["dtype"]) == (size, side, dtype)]
            for field, spelled in (("seconds", markdown.seconds), ("peak_bytes", markdown.gigabytes)):
                row.append(spelled(median(each[field] for each in runs)) if runs else "—")
        rows.append(row)
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "growth.json")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS)
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    sizes = dict.fromkeys(
        [(layers, FIXED_WINDOWS) for layers in arguments.layers]
        + [(FIXED_LAYERS, windows) for windows in arguments.windows]
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="growth-", dir=FOLDER) as scratch:
        for layers, windows in sizes:
            _measure(results, Path(scratch), layers, windows, arguments.length, arguments.repeats)


def _measure(results: Results, scratch: Path, layers: int, windows: int, length: int, repeats: int) -> None:
    checkpoint, tokens = scratch / f"{layers}-layers", scratch / f"{windows}-windows.safetensors"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, llama_config(layers, HIDDEN, INTERMEDIATE, HEADS, VOCABULARY, length))
    write_tokens(tokens, windows, length, VOCABULARY)
    for turn in range(repeats):
        for side, dtype in RUNS:
            size = {"windows": windows, "length": length}
            what: dict[str, Any] = {"side": side, "method": "dass", "dtype": dtype, **size}
            key = {"layers": layers, **what, "turn": turn}
            if results.find(key) is None:
                taken = job.run(job.Job(**what, checkpoint=checkpoint, tokens=tokens), scratch)
                print(results.add(key, asdict(taken)), flush=True)


if __name__ == "__main__":
    command.run(main)
