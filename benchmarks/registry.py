"""How long the registry's answers take once it is large: many versions in one store, and a ledger of many entries.

    python -m benchmarks.registry [--versions 200] [--entries 2000] [--turns 3]

The store is made by the product itself, in .dass/benchmarks/registry: a random tiny model is pruned again and again
with other settings, every result is registered, and entries of proofs follow until the ledger is long enough. It stays
for the next time; one that was stopped is gone on with. Each command is a process of its own, its start counted.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks import command, markdown
from benchmarks.job import JobFailed
from benchmarks.paths import FOLDER
from benchmarks.random_checkpoint import llama_config, write_checkpoint
from benchmarks.results import Record, Results
from flows.initialise import make_workspace
from flows.once import settings_once
from flows.overrides import parse_changes
from tasks.calibration import cache_windows
from tasks.evaluation.stages import evaluate_dense, evaluate_pruned
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.plots import draw_plots
from tasks.pruning.stages import materialize, prune
from tasks.recovery.stages import recover
from tasks.registry.entry import sealed
from tasks.registry.key_file import dsse_signer
from tasks.registry.ledger import Ledger
from tasks.registry.registration import register
from tasks.registry.tracking import reading, tracking
from tasks.registry.versions import all_versions
from tasks.sources.base import fetch_base
from tasks.versioning.stages import pin_inputs
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
from tasks.workspace.settings import load_settings

MODEL = "tiny-dass"
COMMANDS = {
    "history": ["history"],
    "status": ["status"],
    "promote": ["promote", "--force", "--reason", "benchmark"],
}
"""Row -> what is typed. Promotions go back and forth between the two newest versions, so each has something to do."""
_VOCABULARY, _WORDS = (
    300,
    "the model keeps half of its weights and loses little of what it knows about rivers and bread",
)
_SETTINGS = (
    *("calibration.samples=8", "calibration.sequence_length=32", "evaluate.samples=4", "evaluate.sequence_length=32"),
    *("engine.device=cpu", f"register.model={MODEL}", "register.artifact=masks", "promote.proof=true"),
)
TINY = llama_config(2, 32, 64, 4, _VOCABULARY, 128)
_FIRST = (fetch_base, cache_windows, evaluate_dense)
_AGAIN = (prune, recover, materialize, evaluate_pruned, evaluate_tasks, draw_plots)


def store(folder: Path, versions: int, entries: int) -> Workspace:
    """A workspace whose registry is as large as asked, made by the product; what is there is gone on with."""
    ws = Workspace.at(folder) if (folder / "dvc.yaml").exists() else new_workspace(folder)
    with workspace_lock(ws):
        settings = load_settings(ws.params)
        pin_inputs(ws)
        if not ws.evaluation.is_dir():
            for stage in _FIRST:
                stage(ws, settings)
        for number in range(_registered(ws), versions):
            _register(ws, number)
        _fill(ws, entries)
    return ws


def new_workspace(folder: Path, config: LlamaConfig = TINY, changes: Sequence[str] = ()) -> Workspace:
    """A workspace of a random model, which knows 300 tokens, with texts that repeat themselves."""
    sources = folder.with_name(f"{folder.name}-sources")
    write_checkpoint(sources / "model", config)
    lines = [" ".join(_WORDS[(n * k) % len(_WORDS)] for k in range(1, 40)) + f" {n}." for n in range(400)]
    for name, some in (("calibration.txt", lines[:300]), ("evaluation.txt", lines[300:])):
        (sources / name).write_text("\n\n".join(some), encoding="utf-8")
    _tokenizer(lines).save_pretrained(sources / "model")
    named = [str(sources / name) for name in ("model", "calibration.txt", "evaluation.txt")]
    return make_workspace(folder, named[0], named[1], named[2], changes=(*_SETTINGS, *changes))


def _tokenizer(lines: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _registered(ws: Workspace) -> int:
    if not (ws.root / "mlflow.db").exists():
        return 0
    with reading(ws) as client:
        return len(all_versions(client, MODEL))


def _register(ws: Workspace, number: int) -> None:
    """One more version: pruned with an alpha that none before had, measured, drawn and registered."""
    with settings_once(ws, parse_changes([f"prune.alpha={number / 1000}"], "--with")) as once:
        settings = load_settings(once.params)
        for stage in _AGAIN:
            stage(once, settings)
        dvc = dict.fromkeys(("artifacts/base", "artifacts/calibration"), f"{number:032x}")
        origin: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": dvc, "seconds": {"prune": 1.0}}
        register(once, settings, origin)
    if number % 10 == 9:
        print(f"{number + 1} versions", flush=True)


def _fill(ws: Workspace, entries: int) -> None:
    """Signed entries as nightly proofs write them, version after version, until there are enough.

    Written one behind the other, without reading the ledger again before each as `Ledger.record` does.
    """
    with tracking(ws) as client:
        ledger = Ledger.open(client, MODEL, ws)
        chain = ledger.chain()
        registered, last = [entry for entry in chain.entries if entry.event == "registered"], chain.entries[-1]
        steps = [[name, True, "as signed"] for name in ("files", "ledger", "weights", "pattern", "configuration")]
        for n in range(len(chain.entries), entries):
            about = registered[n % len(registered)]
            details: dict[str, Any] = {"steps": steps}
            entry = sealed(dsse_signer(), n, last.digest, "verified", MODEL, about.version, about.manifest, details)
            ledger._write(entry)
            last = entry
            if n % 100 == 99:
                print(f"{n + 1} entries", flush=True)
        if len(chain.entries) < entries:
            for each in registered:
                ledger.tag_head(each.version)


def measure(ws: Workspace, row: str, turns: int) -> Record:
    """Wall and CPU seconds of a command, the median of several turns."""
    took, computed = [], []
    for turn in range(turns):
        asked = [*COMMANDS[row]]
        if row == "promote":
            asked.insert(1, _not_champion(ws, turn))
        argv = [sys.executable, "-P", "-m", "flows", *asked, "--json", "--workspace", str(ws.root)]
        before, began = _children(), time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        took.append(time.perf_counter() - began)
        computed.append(_children() - before)
        if done.returncode:
            raise JobFailed(f"dass {' '.join(asked)} ended with status {done.returncode}: {done.stderr[-500:]}")
        json.loads(done.stdout)
    return {"seconds": median(took), "slowest": max(took), "cpu_seconds": median(computed), "turns": turns}


def _not_champion(ws: Workspace, turn: int) -> str:
    """One of the newest versions that is not champion now."""
    with reading(ws) as client:
        champion = Ledger.open(client, MODEL, ws).chain().champion
        newest = [str(made.version) for made in all_versions(client, MODEL)[:2]]
    return next(number for number in newest if number != champion)


def _children() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(records: list[Record]) -> str:
    """One row a command and size."""
    header = ["command", "versions", "ledger's entries", "time", "slowest turn", "CPU", "turns"]
    rows = [
        [
            f"dass {each['row']}",
            str(each["versions"]),
            f"{each['entries']:,}",
            markdown.seconds(each["seconds"]),
            markdown.seconds(each["slowest"]),
            markdown.seconds(each["cpu_seconds"]),
            str(each["turns"]),
        ]
        for each in records
    ]
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "registry.json")
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--entries", type=int, default=2000, help="the ledger's, before promotions add theirs")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER / "registry", help="where the store is made")
    parser.add_argument("--make-only", action="store_true", help="make the store, and measure nothing")
    arguments = parser.parse_args()
    logging.getLogger("dass").setLevel(logging.WARNING)
    ws = store(arguments.folder.resolve(), arguments.versions, arguments.entries)
    if arguments.make_only:
        return
    results = Results(arguments.results, arguments.fresh)
    for row in COMMANDS:
        key: Record = {"row": row, "versions": arguments.versions, "entries": arguments.entries}
        if results.find(key) is None:
            print(results.add(key, measure(ws, row, arguments.turns)), flush=True)
    print(table(results.records))


if __name__ == "__main__":
    command.run(main)
