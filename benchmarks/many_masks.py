"""Twenty masks from one pass through the dense model, against one pruning run.

    python -m benchmarks.many_masks [--params PARAMS]

Methods, patterns and alphas for one model. The masks' time does not hold the pass that collected the statistics; both
are told.
"""

import hashlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from benchmarks import command, markdown
from benchmarks.paths import FOLDER, ROOT
from benchmarks.prepare import prepare_base
from benchmarks.results import Record, Results
from dass.engine.dense import load_statistics, prune_from_statistics
from dass.engine.run import CheckpointRun
from dass.masks.packing import pack_mask
from dass.method.plan import Plan, plan
from dass.model.streaming import StreamedDecoder
from tasks.workspace.settings import load_settings

_ALPHAS = (0.25, 0.5, 1.0)
_PATTERNS = ("unstructured", "4:8", "2:4", "1:4")


def plans() -> list[Plan]:
    """Twenty: DaSS with three alphas, Wanda and magnitude, each with four patterns."""
    methods = [("dass", alpha) for alpha in _ALPHAS] + [("wanda", 0.5), ("magnitude", 0.5)]
    return [
        plan(method, pattern=pattern, alpha=alpha, propagation="dense")
        for method, alpha in methods
        for pattern in _PATTERNS
    ]


def measure(base: Path, tokens: Path) -> Record:
    """Seconds of a pruning run, of the pass that collects statistics, and of all masks made from them."""
    input_ids = load_file(tokens)["input_ids"]
    asked = plans()
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = CheckpointRun(_decoder(base), input_ids, plan("dass"), Path(folder) / "pruned")
        for index in range(run.layer_count):
            run.layer(index)
        pruned = time.perf_counter() - began
        run.close()

        began = time.perf_counter()
        statistics = Path(folder) / "statistics"
        first = CheckpointRun(_decoder(base), input_ids, asked[0], Path(folder) / "first", statistics=statistics)
        first.layer(0)
        collected = time.perf_counter() - began

        began = time.perf_counter()
        different = set()
        decoder = _decoder(base)
        for each in asked:
            bits = hashlib.sha256()
            for index in range(len(decoder)):
                seen = load_statistics(statistics / f"statistics_{index:03d}.safetensors", decoder.device)
                keep = prune_from_statistics(decoder, index, seen, each, each.pattern).keep
                for mask in keep.values():
                    bits.update(pack_mask(mask).numpy().data)
            different.add(bits.hexdigest())
        made = time.perf_counter() - began
    assert len(different) == len(asked), "two of the masks are the same"
    return {"masks": len(asked), "pruning_seconds": pruned, "collecting_seconds": collected, "masks_seconds": made}


def table(records: list[Record]) -> str:
    """One row a model."""
    header = ["model", "one pruning run", "statistics, once", "masks", "all masks"]
    rows = [
        [
            each["model"],
            markdown.seconds(each["pruning_seconds"]),
            markdown.seconds(each["collecting_seconds"]),
            str(each["masks"]),
            markdown.seconds(each["masks_seconds"]),
        ]
        for each in records
    ]
    return markdown.table(header, rows)


def _decoder(base: Path) -> StreamedDecoder:
    return StreamedDecoder(base, torch.device("cpu"))


def main() -> None:
    parser = command.parser(__doc__, "many_masks.json")
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    arguments = parser.parse_args()
    name = load_settings(arguments.params).register_.model
    workspace = prepare_base(arguments.params, FOLDER / name)
    results = Results(arguments.results, arguments.fresh)
    key = {"model": name}
    if results.find(key) is None:
        results.add(key, measure(workspace.base, workspace.calibration / "tokens.safetensors"))
    print(table(results.records))


if __name__ == "__main__":
    command.run(main)
