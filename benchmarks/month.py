"""A month of nightly runs of twenty models: disk by cache, with and without `dass gc`, and GPU hours.

    python -m benchmarks.month [--nights 30] [--base-every 10] [--settings-every 3] [--gpus 8]

Every night every model is run. Sizes are the formats' own arithmetic; how often something changed is assumed: a model's
base every so many nights, its settings or data every so many, one model's nights behind another's. On the other nights
a run finds that nothing changed, and makes nothing. Of each model a workspace of its own, MLflow without a server.
"""

import argparse
from dataclasses import dataclass, field

from transformers import LlamaConfig

from benchmarks import command, markdown
from benchmarks.paths import RESULTS
from benchmarks.run_cost import MODELS, host_of, mlp_weights, seconds_of, stored_weights, work_of
from benchmarks.scaling import ASSUMED, WIKITEXT, Tokens
from dass.errors import InputError
from dass.files import read_json
from tasks.evaluation.kept import HIDDEN_TOKENS

FLEET = {"LLaMA-2-7B": 14, "LLaMA-3-70B": 5, "LLaMA-3.1-405B": 1}
BESIDE = 250_000
"""Bytes beside a checkpoint's weights (tokenizer, configuration), and of a version's records (card, ...)."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a model's runs leave, file by file.

    Attributes:
        base: a checkpoint, dense or pruned.
        windows: calibration windows.
        dense: what is kept of the dense model's evaluation.
        masks: with statistics and manifest.
        measures: of the pruned model.
    """

    base: int
    windows: int
    dense: int
    masks: int
    measures: int

    def version(self, artifact: str) -> int:
        """Of a registered version."""
        return self.masks + BESIDE + (self.base if artifact == "checkpoint" else 0)


def sizes_of(config: LlamaConfig, tokens: Tokens) -> Sizes:
    """By the formats: bfloat16, a bit a mask entry, int64 tokens, float64 norms, float32 losses and divergences."""
    held_out = tokens.held_out * tokens.held_out_length
    compared = min(held_out, max(HIDDEN_TOKENS, tokens.held_out_length))
    norms = 8 * config.num_hidden_layers * (config.hidden_size + config.intermediate_size)
    return Sizes(
        base=2 * stored_weights(config) + BESIDE,
        windows=8 * tokens.windows * tokens.length,
        dense=12 * held_out + 2 * compared * config.hidden_size,
        masks=mlp_weights(config) // 8 + norms,
        measures=4 * held_out + 6 * compared,
    )


@dataclass(frozen=True)
class Rules:
    """What an operator does.

    Attributes:
        artifact: `register.artifact`.
        gc: `dass gc` behind every night's runs.
        keep: the newest versions of a model that are kept; the others are deleted in MLflow, and gc runs with
            --deleted-versions. None: all.
    """

    artifact: str
    gc: bool = False
    keep: int | None = None

    def __str__(self) -> str:
        kept = "" if self.keep is None else f" --deleted-versions, {self.keep} kept"
        return f"{self.artifact}, {f'dass gc{kept}' if self.gc else 'never freed'}"


SCENARIOS = [
    Rules(artifact, gc, keep)
    for artifact in ("checkpoint", "masks")
    for gc, keep in ((False, None), (True, None), (True, 4))
]


@dataclass
class Disk:
    """One model's workspace: which results lie where, by the numbers of bases and versions.

    Attributes:
        sizes: of its files.
        base: the base's number now; how many there have been, less one.
        made: the base of each version that was ever made.
        registered: numbers of the versions that MLflow has.
        bases, dense, results: in DVC's cache: bases, their evaluations, what versions were made of.
        work: versions whose layers still lie in .dass/work.
    """

    sizes: Sizes
    base: int = -1
    made: list[int] = field(default_factory=list)
    registered: list[int] = field(default_factory=list)
    bases: set[int] = field(default_factory=set)
    dense: set[int] = field(default_factory=set)
    results: set[int] = field(default_factory=set)
    work: set[int] = field(default_factory=set)

    def run(self, *, new_base: bool) -> None:
        """A run that finds something changed: one version more."""
        self.base += new_base
        number = len(self.made)
        self.made.append(self.base)
        self.registered.append(number)
        self.bases.add(self.base)
        self.dense.add(self.base)
        self.results.add(number)
        self.work = {number}  # those of other results go when it is pruned

    def collect(self, rules: Rules) -> None:
        """`dass gc`: the state and every registered version's base stay (docs/disk.md)."""
        if rules.keep is not None:
            self.registered = self.registered[-rules.keep :]
        self.bases = {self.made[number] for number in self.registered} | {self.base}
        self.dense, self.results, self.work = {self.base}, {len(self.made) - 1}, set()

    def places(self, artifact: str) -> dict[str, int]:
        """Bytes by cache."""
        of = self.sizes
        result = of.masks + of.base + of.measures
        return {
            "downloads": (1 + self.base) * of.base,
            "DVC's cache": len(self.bases) * of.base
            + len(self.dense) * of.dense
            + of.windows
            + len(self.results) * result,
            "MLflow": len(self.registered) * of.version(artifact),
            "work": len(self.work) * of.masks,
        }


@dataclass(frozen=True)
class Month:
    """What a month came to.

    Attributes:
        versions, runs: how many.
        hours: of GPUs.
        places: bytes by cache at its end.
        most: bytes that lay there at once, before a night's gc.
    """

    versions: int
    runs: int
    hours: float
    places: dict[str, int]
    most: int


def simulate(rules: Rules, nights: int, base_every: int, settings_every: int, gpus: int) -> Month:
    """Night by night, all models."""
    host = host_of(read_json(RESULTS / "run_cost.json")["records"][0])
    shapes = [MODELS[name]() for name, count in FLEET.items() for _ in range(count)]
    disks = [Disk(sizes_of(shape, WIKITEXT)) for shape in shapes]
    took = [
        {name: seconds_of(stage, ASSUMED, host, gpus, WIKITEXT.windows) for name, stage in work.items()}
        for work in (work_of(shape, WIKITEXT) for shape in shapes)
    ]
    seconds, most = 0.0, 0
    for night in range(nights):
        for number, (disk, each) in enumerate(zip(disks, took, strict=True)):
            new_base = night == 0 or (night + number) % base_every == 0
            if new_base or (night + number) % settings_every == 0:
                disk.run(new_base=new_base)
                seconds += sum(each.values()) - (0 if new_base else each["baseline"])
        most = max(most, sum(sum(disk.places(rules.artifact).values()) for disk in disks))
        if rules.gc:
            for disk in disks:
                disk.collect(rules)
    places = [disk.places(rules.artifact) for disk in disks]
    return Month(
        versions=sum(len(disk.made) for disk in disks),
        runs=nights * len(disks),
        hours=gpus * seconds / 3600,
        places={place: sum(each[place] for each in places) for place in places[0]},
        most=most,
    )


def table(nights: int, base_every: int, settings_every: int, gpus: int) -> str:
    """One row a scenario, terabytes."""
    rows = []
    for rules in SCENARIOS:
        month = simulate(rules, nights, base_every, settings_every, gpus)
        bytes_ = [*month.places.values(), sum(month.places.values()), month.most]
        rows.append([str(rules), *(f"{each / 1e12:.2f}" for each in bytes_)])
    return markdown.table(["TB", *month.places, "all", "at most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--base-every", type=int, default=10, help="nights between a model's bases")
    parser.add_argument("--settings-every", type=int, default=3, help="nights between changes of settings or data")
    parser.add_argument("--gpus", type=int, default=8, help="that a run has")
    arguments = vars(parser.parse_args())
    if min(arguments.values()) < 1:
        raise InputError("--nights, --base-every, --settings-every and --gpus: expected numbers of 1 or more.")
    month = simulate(SCENARIOS[0], **arguments)
    fleet = ", ".join(f"{count} × {name}" for name, count in FLEET.items())
    print(f"{fleet}: {month.runs} runs, {month.versions} versions, {month.hours:,.0f} GPU hours\n")
    print(table(**arguments))


if __name__ == "__main__":
    command.run(main)
