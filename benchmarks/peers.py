"""The engine, llm-compressor and the published procedure with Wanda on real models: time and peak memory.

    make bench-peers                                     # builds llm-compressor's environment first
    python -m benchmarks.peers [--models NAME ...] [--patterns PATTERN ...] [--dtype DTYPE ...] [--repeats N]

Same checkpoint, same tokens, one after the other, every other turn in reverse order; the clock stops when the pruned
checkpoint is written. In each turn this machine's rate on the model's own matrix products is measured as well, and what
every run wrote is compared with the engine's. Every run is a process of its own, llm-compressor's in its own
environment. A turn that was interrupted is measured again, those that the results file holds are not.
"""

import json
import re
import subprocess
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig

from benchmarks import command, markdown
from benchmarks.flops import model_flops
from benchmarks.job import OURS, Job, JobFailed, Measurement, Program, Side, written
from benchmarks.paths import FOLDER, ROOT
from benchmarks.prepare import prepare_base
from benchmarks.results import Record, Results
from benchmarks.speed import DTYPES, ROWS
from benchmarks.timing import model_rate
from dass.errors import InputError
from dass.model.pretrained import load_config
from tasks.workspace.settings import load_settings

PATTERNS = ("unstructured", "2:4")
PYTHON = FOLDER / "peers" / "llm-compressor" / "bin" / "python"
"""Of the environment that `make bench-peers` builds."""
_SHOWN: dict[Side, str] = {"reference": "reference", "peer": "llm-compressor", "engine": "engine"}
_VERSIONS = """
import json, importlib.metadata
print(json.dumps({name: importlib.metadata.version(name) for name in ("llmcompressor", "torch", "transformers")}))
"""
# It computes where the engine does, fetches nothing, and spends no time on bars and lines.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
}
_MLP = re.compile(r"\.mlp\.(gate|up|down)_proj\.weight$")

Measured = Callable[[Job], AbstractContextManager[tuple[Measurement, Path]]]


def tables(records: list[Record]) -> str:
    """A table a model and pattern: medians over the turns, and what limits any of them."""
    parts: list[str] = []
    header = ["run", "time", "ratio", "peak memory", "ratio", "of the floor", "removed", "same masks", "turns"]
    for what in dict.fromkeys(_what(each) for each in records):
        turns = [each for each in records if _what(each) == what]
        model, windows, length, pattern, peer = what
        share = "50 %, unstructured" if pattern == "unstructured" else pattern
        heading = f"**{model}, {windows} windows of {length} tokens, Wanda {share}**"
        parts += [
            heading,
            markdown.table(header, _rows(turns)),
            textwrap.fill(f"{peer}. {_floor(turns)}", width=120, break_on_hyphens=False),
        ]
    return "\n\n".join(parts)


def _what(record: Record) -> tuple[str, int, int, str, str]:
    return record["model"], record["windows"], record["length"], record["pattern"], record["peer"]


def _rows(turns: list[Record]) -> list[list[str]]:
    rows = []
    for side, dtype in _sides(DTYPES):
        found = [each for each in turns if dtype in each["dtypes"]]
        if not found:
            continue
        runs, peers = ([_run(each, whose, dtype) for each in found] for whose in (side, "peer"))
        floor = [each["flops"] / each["rates"][dtype] / run["seconds"] for each, run in zip(found, runs, strict=True)]
        rows.append(
            [
                f"{_SHOWN[side]} {dtype}",
                markdown.seconds(median(run["seconds"] for run in runs)),
                _ratio([run["seconds"] / peer["seconds"] for run, peer in zip(runs, peers, strict=True)]),
                markdown.gigabytes(median(run["peak_bytes"] for run in runs)),
                _ratio([run["peak_bytes"] / peer["peak_bytes"] for run, peer in zip(runs, peers, strict=True)]),
                f"{median(floor):.0%}",
                f"{median(run['removed'] for run in runs):.2%}",
                f"{min(run['same'] for run in runs):.2%}",
                str(len(runs)),
            ]
        )
    return rows


def _run(turn: Record, side: str, dtype: str) -> Record:
    return next(run for run in turn["runs"] if (run["side"], run["dtype"]) == (side, dtype))


def _ratio(ratios: list[float]) -> str:
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{median(ratios):.2f}{spread}"


def _floor(turns: list[Record]) -> str:
    """The counted operations at this machine's rates, in a sentence."""
    flops = turns[0]["flops"]
    parts = []
    for dtype in DTYPES:
        if rates := [each["rates"][dtype] for each in turns if dtype in each["dtypes"]]:
            seconds = markdown.seconds(median(flops / rate for rate in rates))
            parts.append(f"{seconds} in {dtype} at {median(rates) / 1e9:.0f} GFLOP/s")
    return f"Floor: {flops / 1e12:.2f} TFLOP of matrix products, {' and '.join(parts)}."


def _sides(dtypes: Sequence[str]) -> list[tuple[Side, str]]:
    """Who runs in a turn, in order. The reference is in float32 only, as it was published."""
    reference: list[tuple[Side, str]] = [("reference", "float32")] if "float32" in dtypes else []
    return [*reference, *((side, dtype) for dtype in dtypes for side in ("peer", "engine"))]


def take_turn(jobs: Sequence[Job], measured: Measured) -> list[Record]:
    """Run jobs in their order and compare what they wrote.

    Args:
        jobs: one of the engine for every dtype of the others.
        measured: measures a job and shows the checkpoint that it wrote.

    Returns:
        A record a job: its side, its dtype and the measurement; "removed", the share of MLP weights that are zero;
        "same", the share of them that are zero in the engine's checkpoint of the same dtype too, or in neither.

    Raises:
        JobFailed: a run did not end well, or one wrote other matrices than the engine.
    """
    runs: list[Record] = []
    zeros: dict[tuple[Side, str], dict[str, Tensor]] = {}
    for job in jobs:
        with measured(job) as (taken, folder):
            zeros[job.side, job.dtype] = mlp_zeros(folder)
        runs.append({"side": job.side, "dtype": job.dtype, **asdict(taken)})
        print(f"{_SHOWN[job.side]} {job.dtype}: {taken.seconds:.1f} s, {taken.peak_bytes / 1e9:.2f} GB", flush=True)
    for run in runs:
        own, engines = zeros[run["side"], run["dtype"]], zeros["engine", run["dtype"]]
        run["removed"] = _share(own)
        run["same"] = same_masks(own, engines)
    return runs


def mlp_zeros(folder: Path) -> dict[str, Tensor]:
    """Where the MLP weights of a checkpoint folder are zero: name -> bool, shape of the matrix."""
    zeros: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            zeros |= {name: tensors.get_tensor(name) == 0 for name in tensors.keys() if _MLP.search(name)}  # noqa: SIM118
    return zeros


def same_masks(zeros: dict[str, Tensor], engines: dict[str, Tensor]) -> float:
    """Share of MLP weights that are zero in both or in neither.

    Raises:
        JobFailed: they are not the same matrices.
    """
    if {name: zero.shape for name, zero in zeros.items()} != {name: zero.shape for name, zero in engines.items()}:
        raise JobFailed(f"{len(zeros)} MLP matrices are not the engine's {len(engines)}: another model was written.")
    return _share({name: zero == engines[name] for name, zero in zeros.items()})


def _share(entries: dict[str, Tensor]) -> float:
    return sum(int(each.count_nonzero()) for each in entries.values()) / sum(each.numel() for each in entries.values())


def peer_versions() -> str:
    """What is in llm-compressor's environment, as the page says it.

    Raises:
        InputError: there is none.
    """
    try:
        asked = subprocess.run([str(PYTHON), "-I", "-c", _VERSIONS], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"No environment of llm-compressor in {PYTHON.parents[1]}. Run: make bench-peers") from error
    found = json.loads(asked.stdout)
    return (
        f"llm-compressor {found['llmcompressor']} with torch {found['torch']} and transformers {found['transformers']}"
    )


def main() -> None:
    parser = command.parser(__doc__, "peers.json")
    parser.add_argument("--models", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="what both compute in")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--windows", type=int, help="instead of the model's own count")
    parser.add_argument("--length", type=int, help="tokens a window, instead of 512")
    arguments = parser.parse_args()
    peer = peer_versions()
    results = Results(arguments.results, arguments.fresh)
    for model in arguments.models:
        row = ROWS[model]
        workspace = prepare_base(row.params, FOLDER / load_settings(row.params).register_.model)
        files: dict[str, Any] = {"checkpoint": workspace.base, "tokens": workspace.calibration / "tokens.safetensors"}
        config: Any = load_config(workspace.base).get_text_config()
        size: dict[str, Any] = {"windows": arguments.windows or row.windows, "length": arguments.length or row.length}
        for pattern in arguments.patterns:
            jobs = [
                Job(side=side, method="wanda", dtype=dtype, pattern=pattern, **size, **files)
                for side, dtype in _sides(arguments.dtype)
            ]
            for turn in range(arguments.repeats):
                what = {"model": model, "pattern": pattern, "dtypes": list(arguments.dtype), **size}
                key = {**what, "peer": peer, "turn": turn}
                if results.find(key) is None:
                    print(f"{model}, {pattern}, turn {turn + 1} of {arguments.repeats}", flush=True)
                    before = _rates(config, arguments.dtype)
                    runs = take_turn(jobs if turn % 2 == 0 else jobs[::-1], measured_process)
                    after = _rates(config, arguments.dtype)
                    rates = {dtype: max(before[dtype], after[dtype]) for dtype in arguments.dtype}
                    results.add(key, {"flops": model_flops(config, **size), "rates": rates, "runs": runs})


def measured_process(job: Job, scratch: Path = FOLDER) -> AbstractContextManager[tuple[Measurement, Path]]:
    """A job measured in the environment of its side, and the checkpoint that it wrote into `scratch`."""
    script = str(ROOT / "benchmarks" / "llm_compressor.py")
    program = Program((str(PYTHON), "-I", "-W", "ignore", script), _ENVIRONMENT) if job.side == "peer" else OURS
    return written(job, scratch, program)


def _rates(config: LlamaConfig, dtypes: Sequence[str]) -> dict[str, float]:
    return {dtype: model_rate(config, getattr(torch, dtype)) for dtype in dtypes}


if __name__ == "__main__":
    command.run(main)
