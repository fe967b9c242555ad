"""What a sweep costs, from what is done once and what every point takes; a plan for LLaMA-2-7B on several GPUs.

    python -m benchmarks.scaling [--sweep WORKSPACE NAME] [--points 40] [--workers 1 8 64]

    total = once + rounds × point + start      rounds = points / workers, rounded up
    once  = dense evaluation + one statistics pass
    point = masks + evaluation

With --sweep the pieces are those that a finished sweep of this machine measured (its name, or "last"). The plan for the
7B model is made of operations and bytes, and of `ASSUMED`: nobody measured it.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import LlamaConfig

from benchmarks import command, markdown
from benchmarks.flops import attention_flops, mlp_flops
from benchmarks.random_checkpoint import llama_2_7b, stored_bytes
from dass.errors import InputError
from dass.files import read_json


@dataclass(frozen=True)
class Costs:
    """Seconds of a sweep's pieces.

    Attributes:
        once: of what all points share.
        point: of one point.
        start: of a worker before its first point: it reads the model.
    """

    once: float
    point: float
    start: float = 0.0

    def total(self, points: int, workers: int) -> float:
        """Seconds until the last point is there, when each worker does one at a time."""
        return self.once + self.start + math.ceil(points / workers) * self.point

    def busy(self, points: int, workers: int) -> float:
        """The share of all workers' time in which they work; one of them does what is done once."""
        at_work = self.once + points * self.point + min(points, workers) * self.start
        return at_work / (workers * self.total(points, workers))


@dataclass(frozen=True)
class Machine:
    """What a worker can do, a second.

    Attributes:
        operations: of matrix products, as they are reached.
        memory: bytes moved in the device's memory.
        disk: bytes read by one worker alone.
        shared: bytes that the shared file system gives to all workers together.
    """

    operations: float
    memory: float
    disk: float
    shared: float


@dataclass(frozen=True)
class Tokens:
    """Calibration windows and their length; evaluation windows and theirs."""

    windows: int
    length: int
    held_out: int
    held_out_length: int


ASSUMED = Machine(operations=0.4 * 989e12, memory=0.6 * 3.35e12, disk=2e9, shared=20e9)
"""An H100 SXM by its data sheet: 989 TFLOP/s in bfloat16 (dense), 3.35 TB/s. That 40 % and 60 % of them are reached,
and what disks give, is assumed."""
WIKITEXT = Tokens(windows=128, length=2048, held_out=166, held_out_length=2048)
"""The paper's calibration, and WikiText-2's test split (about 341,000 of LLaMA-2's tokens) in windows of 2048."""
_READS = 3
"""Times that a point reads the MLP weights: masks are made from them, and the zeros of base and pruned counted."""
SCORE_PASSES = 30
"""Times that scores (float32) move through memory while a mask is chosen: a sort, mostly."""
LOGIT_PASSES = 8
"""Times that logits (float32) move through memory: soft maxima of two models, and their divergence."""


def costs_of(config: LlamaConfig, tokens: Tokens, machine: Machine, workers: int) -> Costs:
    """A model's pieces by operations and bytes, `propagation: dense`, on so many workers at once."""
    layers = config.num_hidden_layers
    stored = stored_bytes(config)
    mlp = 3 * layers * config.hidden_size * config.intermediate_size

    def read(count: float, at_once: int) -> float:
        return count / min(machine.disk, machine.shared / at_once)

    def forward(windows: int, length: int) -> float:
        operations = layers * (attention_flops(config, windows, length) + mlp_flops(config, windows, length, 3))
        return operations / machine.operations

    def judged(windows: int, length: int) -> float:
        logits = windows * length * config.vocab_size
        head = 2 * logits * config.hidden_size / machine.operations
        return forward(windows, length) + head + 4 * logits * LOGIT_PASSES / machine.memory

    evaluation = judged(tokens.held_out, tokens.held_out_length)
    statistics = read(stored, 1) + forward(tokens.windows, tokens.length)
    masks = 4 * mlp * SCORE_PASSES / machine.memory
    return Costs(
        once=read(stored, 1) + evaluation + statistics,
        point=masks + evaluation + _READS * read(2 * mlp, workers),
        start=read(stored, workers),
    )


def plan(points: int, workers: Sequence[int], machine: Machine = ASSUMED) -> str:
    """LLaMA-2-7B on so many GPUs, as a markdown table."""
    rows = []
    config = llama_2_7b()
    alone = costs_of(config, WIKITEXT, machine, 1).total(points, 1)
    for count in workers:
        costs = costs_of(config, WIKITEXT, machine, min(count, points))
        total = costs.total(points, count)
        rows.append(
            [
                str(count),
                markdown.seconds(costs.once),
                markdown.seconds(costs.start),
                markdown.seconds(costs.point),
                str(math.ceil(points / count)),
                f"{total / 60:.1f} min",
                f"{alone / total:.1f} ×",
                f"{costs.busy(points, count):.0%}",
                f"{count * total / 3600:.2f}",
            ]
        )
    header = ["GPUs", "once", "start", "a point", "rounds", "total", "faster", "busy", "GPU hours"]
    return markdown.table(header, rows)


def measured(sweep: dict[str, Any]) -> tuple[Costs, str]:
    """The pieces of a finished sweep, and a table of them.

    Args:
        sweep: its sweep.json.

    Raises:
        InputError: no point was made by it: all were found, or failed.
    """
    made = [each["record"]["seconds"] for each in sweep["points"] if each["record"]["seconds"]]
    if not made:
        raise InputError(f"Sweep {sweep['sweep']} made no point: name one that did.")
    shared = sweep["shared_seconds"]
    pieces = {what: [seconds.get(what, 0.0) for seconds in made] for what in ("prune", "evaluate", "recover")}
    costs = Costs(sum(shared.values()), sum(mean(values) for values in pieces.values()))
    rows = [[f"once: {what}", "1", markdown.seconds(seconds)] for what, seconds in shared.items()]
    rows += [
        [f"a point: {what}", str(sum(each > 0 for each in values)), markdown.seconds(mean(values))]
        for what, values in pieces.items()
    ]
    table = markdown.table(["piece", "times", "seconds, mean over points"], rows)
    return costs, table


def _sweep_of(workspace: Path, name: str) -> dict[str, Any]:
    known = sorted(workspace.glob(".dass/sweeps/*/sweep.json"), key=lambda path: path.stat().st_mtime)
    found = known[-1:] if name == "last" else [path for path in known if path.parent.name.startswith(name)]
    if len(found) != 1:
        names = ", ".join(path.parent.name for path in known) or "none"
        raise InputError(f"--sweep {workspace} {name}: expected one finished sweep. There are: {names}.")
    sweep: dict[str, Any] = read_json(found[0])
    return sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs=2, metavar=("WORKSPACE", "NAME"), help="a finished sweep of this machine")
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 8, 64), help="how many GPUs")
    arguments = parser.parse_args()
    if min(arguments.points, *arguments.workers) < 1:
        raise InputError("--points and --workers: expected numbers of 1 or more.")
    if arguments.sweep:
        workspace, name = arguments.sweep
        sweep = _sweep_of(Path(workspace), name)
        costs, table = measured(sweep)
        count, parallel = len(sweep["points"]), sweep["asked"]["parallel"]
        print(f"Measured by sweep {sweep['sweep']} ({count} points, {parallel} at once):\n\n{table}\n")
        for points in dict.fromkeys((count, arguments.points)):
            print(f"{points} points here, one at a time: {markdown.seconds(costs.total(points, 1))}")
        print()
    print(f"LLaMA-2-7B, {arguments.points} points, assumed and not measured: {ASSUMED}, {WIKITEXT}\n")
    print(plan(arguments.points, arguments.workers))


if __name__ == "__main__":
    command.run(main)
