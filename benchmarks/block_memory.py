"""Peak memory of re-fits to the whole block's target: a LLaMA of 1B's shape with random weights, on the CPU.

    python -m benchmarks.block_memory [--layers 4 8 16] [--scratch FOLDER]

float32, which takes the most. As few windows and steps as reach the peak: the optimiser's two moments are there behind
its first step, and a step of conjugate gradients needs the buffers of all of them.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from benchmarks import command, job, markdown
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import ensure_checkpoint, llama_1b, stored_bytes, write_tokens
from benchmarks.results import Record, Results

_FLOAT32 = 4


def table(records: list[Record]) -> str:
    """A row a number of layers; growth is relative to the row above."""
    rows, before = [], None
    for each in sorted(records, key=lambda record: record["layers"]):
        growth = f"{each['peak_bytes'] / before - 1:+.1%}" if before else "—"
        before = each["peak_bytes"]
        rows.append(
            [
                str(each["layers"]),
                f"{each['windows']} × {each['length']}",
                markdown.gigabytes(each["stored_bytes"]),
                markdown.gigabytes(each["buffers_bytes"]),
                markdown.gigabytes(each["mlp_bytes"]),
                markdown.gigabytes(each["peak_bytes"]),
                growth,
                markdown.gigabytes(each["baseline_bytes"]),
            ]
        )
    header = [
        "layers",
        "tokens",
        "weights on disk",
        "two buffers",
        "a layer's MLP",
        "peak memory",
        "growth",
        "of it after imports",
    ]
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "block_memory.json")
    parser.add_argument("--layers", type=int, nargs="+", default=(4, 8, 16))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens a window")
    parser.add_argument("--scratch", type=Path, default=FOLDER / "1b", help="where the checkpoints are written")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for layers in arguments.layers:
        what = {
            "side": "engine",
            "method": "dass",
            "dtype": "float32",
            "windows": arguments.windows,
            "length": arguments.length,
            "update": "reconstruct-block",
            "fewest_steps": True,
        }
        key = {"layers": layers, **what}
        if results.find(key) is None:
            _measure(results, key, arguments.scratch.resolve())


def _measure(results: Results, key: Record, scratch: Path) -> None:
    config = llama_1b(key["layers"])
    folder, tokens = scratch / f"{key['layers']}-layers", scratch / "tokens.safetensors"
    try:
        ensure_checkpoint(folder, config, spare_bytes=2 * stored_bytes(config))  # the output, and finished layers
        write_tokens(tokens, key["windows"], key["length"], config.vocab_size)
        asked = {name: value for name, value in key.items() if name != "layers"}
        taken = job.run(job.Job(**asked, checkpoint=folder, tokens=tokens), scratch)
        sizes = {
            "stored_bytes": stored_bytes(config),
            "buffers_bytes": 2 * key["windows"] * key["length"] * config.hidden_size * _FLOAT32,
            "mlp_bytes": 3 * config.hidden_size * config.intermediate_size * _FLOAT32,
        }
        print(results.add(key, asdict(taken) | sizes), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        tokens.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
