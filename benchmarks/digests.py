"""How often a run reads a model-sized file: bytes read at the steps that hash, LLaMA-2-7B's width, on the CPU.

    python -m benchmarks.digests [--layers 2] [--scratch FOLDER]

The model has a few layers of 7B's width (0.4 GB each) and a vocabulary of 300 tokens; a share of its bytes is the same
at 32. Everything is done by the product's own functions, with DVC, in this process, whose reads the kernel counts.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command, markdown
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import llama_config, stored_bytes
from benchmarks.registry import new_workspace
from benchmarks.results import Record, Results
from flows.stages import STAGES
from tasks.registry.registration import register
from tasks.versioning.provenance import provenance
from tasks.versioning.stages import run_if_changed, start_run
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
from tasks.workspace.settings import load_settings

_STEPS = {
    "begin": ("a run begins", "nothing: `dass init` has pinned the source"),
    "sources": ("sources", "the copy"),
    "materialize": ("materialize", "the base"),
    "registration": ("registration", "the copy into MLflow's store"),
}
"""Step -> how it is called, and what it reads the model for whatever else it does."""
_SETTINGS = (
    *("calibration.samples=2", "calibration.sequence_length=16", "evaluate.samples=2", "evaluate.sequence_length=16"),
    "register.artifact=checkpoint",
)


def table(records: list[Record]) -> str:
    """A row a step, in the order of a run."""
    rows = []
    for each in sorted(records, key=lambda record: (record["layers"], list(_STEPS).index(record["step"]))):
        named, needed = _STEPS[each["step"]]
        rows.append(
            [
                named,
                str(each["layers"]),
                markdown.gigabytes(each["stored_bytes"]),
                needed,
                f"{each['read_bytes'] / each['stored_bytes']:.2f}",
            ]
        )
    return markdown.table(["step", "layers", "model", "reads once for", "bytes read / model"], rows)


def main() -> None:
    parser = command.parser(__doc__, "digests.json")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=FOLDER / "digests", help="where all of it is written")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    if results.find({"layers": arguments.layers}) is not None:
        return
    scratch = arguments.scratch.resolve()
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for step, figures in _measured(scratch, arguments.layers).items():
            print(results.add({"layers": arguments.layers, "step": step}, figures), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measured(scratch: Path, layers: int) -> dict[str, Record]:
    _register_a_tiny_one(scratch / "tiny")  # what is imported and prepared when it is first wanted is no model's bytes
    config = llama_config(layers, hidden=4096, intermediate=11008, heads=32, vocabulary=300, context=128)
    ws = new_workspace(scratch / "ws", config, _SETTINGS)
    stored = {"stored_bytes": stored_bytes(config)}
    return {step: figures | stored for step, figures in _run(ws).items()}


def _register_a_tiny_one(folder: Path) -> None:
    _run(new_workspace(folder, changes=_SETTINGS))


def _run(ws: Workspace) -> dict[str, Record]:
    """Every stage, and the registration: step -> bytes."""
    taken: dict[str, Record] = {}

    def measured(step: str, work: Callable[[], Any]) -> Any:
        before = _bytes_read()
        made = work()
        taken[step] = {"read_bytes": _bytes_read() - before}
        return made

    with workspace_lock(ws):
        started = measured("begin", lambda: start_run(ws))
        settings = load_settings(ws.params)
        for stage in STAGES.values():
            measured(stage.name, partial(run_if_changed, ws, stage.name, partial(stage.work, ws, settings), started))
        measured("registration", lambda: register(ws, settings, provenance(ws, {})))
    return {step: taken[step] for step in _STEPS}


def _bytes_read() -> int:
    """What this process has asked the kernel for, from the disk or its cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


if __name__ == "__main__":
    command.run(main)
