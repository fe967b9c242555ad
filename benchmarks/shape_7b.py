"""Peak memory of pruning a model far larger than memory: LLaMA-2-7B's shape with random weights, on the CPU.

    python -m benchmarks.shape_7b [--layers 16 32] [--scratch FOLDER] [--keep]

32 layers are 13.5 GB of bfloat16 on disk, and as much again for the pruned checkpoint; both are removed at the end.
DaSS at 50 %.
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
                markdown.gigabytes(each["peak_bytes"]),
                growth,
                markdown.gigabytes(each["baseline_bytes"]),
                markdown.seconds(each["seconds"]),
            ]
        )
    header = ["layers", "tokens", "weights on disk", "peak memory", "growth", "of it after imports", "time"]
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "shape_7b.json")
    parser.add_argument("--layers", type=int, nargs="+", default=(16, 32))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens a window")
    parser.add_argument("--scratch", type=Path, default=FOLDER / "7b", help="where the checkpoints are written")
    parser.add_argument("--keep", action="store_true", help="leave the dense checkpoints there")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for layers in arguments.layers:
        what = {"method": "dass", "dtype": "bfloat16", "windows": arguments.windows, "length": arguments.length}
        key = {"layers": layers, "side": "engine", **what}
        if results.find(key) is None:
            _measure(results, key, arguments.scratch.resolve(), arguments.keep)


def _measure(results: Results, key: Record, scratch: Path, keep: bool) -> None:
    config = llama_2_7b(key["layers"])
    folder, tokens = scratch / f"{key['layers']}-layers", scratch / "tokens.safetensors"
    try:
        ensure_checkpoint(folder, config, spare_bytes=stored_bytes(config) + _SLACK_BYTES)
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
