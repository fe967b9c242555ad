"""The engine against the published procedure on real models: time and peak memory.

    python -m benchmarks.speed [--models NAME ...] [--methods METHOD ...] [--dtype DTYPE ...] [--repeats N]

Same model, same tokens, one after the other in turn; a ratio is taken inside each turn, and the median of the turns is
reported. Every run is a process of its own. What the results file holds is not measured again.
"""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import command, job, markdown
from benchmarks.flops import engine_share
from benchmarks.paths import FOLDER, ROOT
from benchmarks.prepare import prepare_base
from benchmarks.results import Record, Results
from dass.model.pretrained import load_config
from tasks.workspace.settings import load_settings

METHODS = ("dass", "wanda", "magnitude", "sparsegpt")
DTYPES = ("float32", "bfloat16")
REFERENCE: tuple[job.Side, str] = ("reference", "float32")


@dataclass(frozen=True)
class Row:
    """A model and how many of its calibration windows are used."""

    params: Path
    windows: int
    length: int


ROWS = {
    "smollm2-135m": Row(ROOT / "params.yaml", 32, 512),
    "gemma-3-270m": Row(ROOT / "examples" / "gemma-3-270m" / "params.yaml", 16, 512),
}


def tables(records: list[Record]) -> str:
    """A table a model: medians of seconds and peak memory, and medians of the turns' ratios."""
    parts: list[str] = []
    header = ["method", "run", "time", "ratio", "peak memory", "ratio", "turns"]
    for size in dict.fromkeys(_size(each) for each in records):
        model, windows, length = size
        of_size = [each for each in records if _size(each) == size]
        table = markdown.table(header, _rows(of_size))
        parts += [f"**{model}, {windows} windows of {length} tokens**", table, _what_limits(of_size[0])]
    return "\n\n".join(parts)


def _what_limits(record: Record) -> str:
    """A sentence on the floor of the ratio."""
    told = (
        f"What limits the ratio: the engine needs {record['operations_ratio']:.2f} of the reference's matrix-product "
        "operations (attention once instead of twice; gate and up dense and pruned, down pruned only), and on a CPU "
        "both sides run them at about the same rate in float32. In bfloat16 products are faster; softmax, norms and "
        "masks are not."
    )
    return textwrap.fill(told, width=120)


def _size(record: Record) -> tuple[str, int, int]:
    return record["model"], record["windows"], record["length"]


def _rows(records: list[Record]) -> list[list[str]]:
    rows = []
    for method, side, dtype in dict.fromkeys((each["method"], each["side"], each["dtype"]) for each in records):
        runs = _turns(records, method, side, dtype)
        reference = _turns(records, method, *REFERENCE)
        row = [method, f"{side} {dtype}"]
        for field, spelled in (("seconds", markdown.seconds), ("peak_bytes", markdown.gigabytes)):
            ratios = [run[field] / reference[turn][field] for turn, run in runs.items() if turn in reference]
            row.append(spelled(median(run[field] for run in runs.values())))
            row.append(f"{median(ratios):.2f}" if ratios else "—")
        rows.append([*row, str(len(runs))])
    return rows


def _turns(records: list[Record], method: str, side: str, dtype: str) -> dict[int, Record]:
    wanted = {"method": method, "side": side, "dtype": dtype}
    return {each["turn"]: each for each in records if wanted.items() <= each.items()}


def main() -> None:
    parser = command.parser(__doc__, "speed.json")
    parser.add_argument("--models", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="what the engine computes in")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--windows", type=int, help="instead of the model's own count")
    parser.add_argument("--length", type=int, help="tokens a window, instead of 512")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for model in arguments.models:
        row = ROWS[model]
        workspace = prepare_base(row.params, FOLDER / load_settings(row.params).register_.model)
        size = {"windows": arguments.windows or row.windows, "length": arguments.length or row.length}
        config: Any = load_config(workspace.base).get_text_config()
        share = engine_share(config, size["length"])
        files: dict[str, Any] = {
            "checkpoint": workspace.base,
            "tokens": workspace.calibration / "tokens.safetensors",
        }
        for method in arguments.methods:
            for turn in range(arguments.repeats):
                for side, dtype in (REFERENCE, *(("engine", dtype) for dtype in arguments.dtype)):
                    what: dict[str, Any] = {"side": side, "method": method, "dtype": dtype, **size}
                    key = {"model": model, **what, "turn": turn}
                    if results.find(key) is None:
                        figures = asdict(job.run(job.Job(**what, **files), FOLDER))
                        print(results.add(key, figures | {"operations_ratio": share}), flush=True)


if __name__ == "__main__":
    command.run(main)
