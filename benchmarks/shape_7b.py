"""Peak memory of pruning a model far larger than memory: LLaMA-2-7B's shape with random weights, on the CPU.

    python -m benchmarks.shape_7b [--layers 16 32] [--patterns unstructured 2:4] [--scratch FOLDER] [--keep]

32 layers are 13.5 GB of bfloat16 on disk, and as much again for the pruned checkpoint; both are removed at the end.
DaSS, half of the weights.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from benchmarks import command, job, markdown
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import ensure_checkpoint, llama_2_7b, stored_bytes, write_tokens
from benchmarks.results import Record, Results

_SLACK_BYTES = 2 * 10**9  # masks of finished layers, and a disk that is not filled to the brim


def table(records: list[Record]) -> str:
    """A row a pattern and number of layers; growth is relative to fewer layers of the same pattern."""
    rows: list[list[str]] = []
    before: dict[str, int] = {}
    for each in sorted(records, key=lambda record: (record["pattern"], record["layers"])):
        pattern = each["pattern"]
        growth = f"{each['peak_bytes'] / before[pattern] - 1:+.1%}" if pattern in before else "—"
        before[pattern] = each["peak_bytes"]
        rows.append(
            [
                pattern,
                str(each["layers"]),
                f"{each['windows']} × {each['length']}",
                markdown.gigabytes(each["stored_bytes"]),
                markdown.gigabytes(each["peak_bytes"]),
                growth,
                markdown.gigabytes(each["baseline_bytes"]),
                markdown.seconds(each["seconds"]),
            ]
        )
    header = ["pattern", "layers", "tokens", "weights on disk", "peak memory", "growth", "of it after imports", "time"]
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "shape_7b.json")
    parser.add_argument("--layers", type=int, nargs="+", default=(16, 32))
    parser.add_argument("--patterns", nargs="+", default=("unstructured", "2:4"), help="that keep half")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens a window")
    parser.add_argument("--scratch", type=Path, default=FOLDER / "7b", help="where the checkpoints are written")
    parser.add_argument("--keep", action="store_true", help="leave the dense checkpoints there")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for layers in arguments.layers:
        what = {"method": "dass", "dtype": "bfloat16", "windows": arguments.windows, "length": arguments.length}
        keys = [{"layers": layers, "side": "engine", "pattern": pattern, **what} for pattern in arguments.patterns]
        if missing := [key for key in keys if results.find(key) is None]:
            _measure(results, missing, arguments.scratch.resolve(), arguments.keep)


def _measure(results: Results, keys: list[Record], scratch: Path, keep: bool) -> None:
    """Jobs of one number of layers, on one checkpoint."""
    layers = keys[0]["layers"]
    config = llama_2_7b(layers)
    folder, tokens = scratch / f"{layers}-layers", scratch / "tokens.safetensors"
    try:
        ensure_checkpoint(folder, config, spare_bytes=stored_bytes(config) + _SLACK_BYTES)
        for key in keys:
            write_tokens(tokens, key["windows"], key["length"], config.vocab_size)
            asked = {name: value for name, value in key.items() if name != "layers"}
            taken = job.run(job.Job(**asked, checkpoint=folder, tokens=tokens), scratch)
            print(results.add(key, asdict(taken) | {"stored_bytes": stored_bytes(config)}), flush=True)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            tokens.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
