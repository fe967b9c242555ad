"""What re-fits and recovery bring back: a table that is filled row by row, each row as `dass run` runs it.

    python -m benchmarks.refits --list
    python -m benchmarks.refits [--params params.yaml ...] [--rows 'sparsegpt*2:4 paper' 'recipe*' ...]

Rows are taken in the order of --list, the most wanted first, and each is in the results file as soon as it is measured.
What the file holds is not run again; a run that was killed goes on where it was. The rows of a model share a workspace
under .dass/benchmarks/refits, so that a recovery starts from masks that an earlier row made. A recipe's row has one of
its own, because the time of its whole run is what counts. `python -m benchmarks.render` writes docs/results.md.
"""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import command, markdown
from benchmarks.job import JobFailed
from benchmarks.paths import FOLDER, ROOT
from benchmarks.pipeline import dass_run, perplexities
from benchmarks.prepare import workspace_with
from benchmarks.results import Record, Results
from dass.errors import InputError
from dass.files import read_json, write_json
from tasks.pruning.stages import seconds_per_layer
from tasks.workspace.folder import Workspace
from tasks.workspace.recipes import RECIPES
from tasks.workspace.settings import load_settings

METHODS = ("sparsegpt", "wanda", "dass", "auto")
PATTERNS: dict[str, dict[str, Any]] = {
    "2:4 paper": {"prune.pattern": "2:4", "prune.sparsity": None, "prune.layout": "paper"},
    "2:4 transposable": {"prune.pattern": "2:4", "prune.sparsity": None, "prune.layout": "transposable"},
    "4:8": {"prune.pattern": "4:8", "prune.sparsity": None, "prune.layout": "paper"},
    "50 %": {"prune.pattern": "unstructured", "prune.sparsity": 0.5, "prune.layout": "paper"},
}
# As the recipe `best` trains, on less text; every window once.
_RECOVER = {
    **{key: value for key, value in RECIPES["best"].items() if key.startswith("recover.")},
    "recover.steps": 80,
    "recover.windows": 170,
    "recover.evaluate_every": 40,
    "recover.checkpoint_every": 20,
}
WAYS: dict[str, dict[str, Any]] = {
    "reconstruct": {"prune.update": "reconstruct"},
    "reconstruct + recover": {"prune.update": "reconstruct", **_RECOVER},
    "reconstruct + swaps": {"prune.update": "reconstruct", "prune.refine": "swaps"},
    "reconstruct-mlp": {"prune.update": "reconstruct-mlp", "prune.validation_share": 0.1},
    "reconstruct-block": {"prune.update": "reconstruct-block", "prune.validation_share": 0.1},
    "masks only": {"prune.update": "none"},
}
_SAMPLES = 32
"""Calibration windows of every row but a recipe's."""
_WANTED_FIRST = (
    ("recipe", "published", "2:4 paper"),
    ("recipe", "quick", "2:4 paper"),
    ("recipe", "best", "2:4 paper"),
    ("sparsegpt", "reconstruct", "2:4 paper"),
    ("sparsegpt", "reconstruct + recover", "2:4 paper"),
    ("wanda", "reconstruct", "50 %"),
    ("wanda", "reconstruct + recover", "50 %"),
    ("sparsegpt", "reconstruct-block", "2:4 paper"),
    ("sparsegpt", "reconstruct + swaps", "2:4 paper"),
    ("sparsegpt", "reconstruct-mlp", "2:4 paper"),
    ("sparsegpt", "reconstruct", "2:4 transposable"),
    ("sparsegpt", "reconstruct + recover", "2:4 transposable"),
    ("sparsegpt", "reconstruct", "4:8"),
    ("sparsegpt", "reconstruct + recover", "4:8"),
)
_NOTE = """Every row is one `dass run` (`python -m benchmarks.refits`) on {samples} calibration windows. The interval of
the ratio is a paired bootstrap over the evaluation's windows; KL divergence from the dense model and the share of
tokens with the same most likely one are those of the first 4,096 tokens of that text, so that better figures on
Wikipedia alone would show. Minutes are those of the stages prune and recover. Tokens: of calibration, and those that
recovery trained on: {steps} steps, where the recipe `best` takes {most}."""
_RECIPES_NOTE = (
    "The recipes of `dass run --recipe`, on a workspace in which nothing was there; minutes are those of the whole "
    "command, measuring both models included."
)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: of METHODS, or "recipe".
        way: of WAYS, or the recipe's name.
        pattern: of PATTERNS.
    """

    method: str
    way: str
    pattern: str

    @property
    def name(self) -> str:
        return f"{self.method}, {self.way}, {self.pattern}"

    @property
    def is_recipe(self) -> bool:
        return self.method == "recipe"

    @property
    def key(self) -> Record:
        return {"method": self.method, "way": self.way, "pattern": self.pattern}

    @property
    def recipe(self) -> str:
        """What the settings begin with; `published` leaves nothing of another row behind."""
        return self.way if self.is_recipe else "published"

    @property
    def changes(self) -> dict[str, Any]:
        """Setting -> value, behind the recipe's."""
        own = {} if self.is_recipe else {"calibration.samples": _SAMPLES, "prune.method": self.method, **WAYS[self.way]}
        return {**own, **PATTERNS[self.pattern]}


def rows() -> list[Row]:
    """Every row, the most wanted first."""
    recipes = [Row("recipe", name, pattern) for pattern in PATTERNS for name in RECIPES]
    table = [Row(method, way, pattern) for way, pattern, method in product(WAYS, PATTERNS, METHODS)]
    return list(dict.fromkeys([*(Row(*each) for each in _WANTED_FIRST), *recipes, *table]))


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows that some names with * and ? choose, in the table's order.

    Raises:
        InputError: a name chooses none.
    """
    every = rows()
    for name in names:
        if not any(fnmatchcase(row.name, name) for row in every):
            raise InputError(f"--rows {name!r} is no row: python -m benchmarks.refits --list shows them.")
    return [row for row in every if any(fnmatchcase(row.name, name) for name in names)]


def measure(ws: Path, row: Row, before: Sequence[Record]) -> Record:
    """Run a row.

    Args:
        ws: its workspace.
        row: the row.
        before: records of the same model: an earlier row may have made this one's masks.

    Raises:
        JobFailed: `dass run` did not end well.
    """
    begun = ws.with_name(f"{ws.name}.begun.json")
    resumed = begun.exists() and read_json(begun) == row.key
    write_json(begun, row.key)
    answer = dass_run(ws, row.changes, row.recipe)
    begun.unlink()
    metrics = read_json(ws / "metrics" / "evaluation.json")
    recovery = read_json(ws / "artifacts" / "recovered" / "recovery.json")
    divergence = metrics["divergence"]
    return {
        "settings": _asked(ws),
        **perplexities(metrics),
        "kl": divergence["kl"],
        "top1_agreement": divergence["top1_agreement"],
        "mlp_sparsity": metrics["sparsity"]["mlp"],
        "calibration_tokens": read_json(ws / "artifacts" / "calibration" / "calibration.json")["tokens"],
        "training_tokens": recovery.get("tokens", 0),
        "seconds": {stage: _seconds(ws, stage, answer, before) for stage in ("prune", "recover")},
        "command_seconds": answer["command_seconds"],
        "resumed": resumed,
    }


def section(records: list[Record]) -> str:
    """What was measured, as markdown: a table a model and pattern, and the recipes."""
    parts = []
    for model in dict.fromkeys(each["model"] for each in records):
        of_model = [each for each in records if each["model"] == model]
        for pattern in PATTERNS:
            found = [each for each in of_model if each["pattern"] == pattern and each["method"] != "recipe"]
            if found:
                dense = found[0]["dense"]
                parts += [f"**{model}, {pattern}** (dense {dense:.2f})", _table(found)]
    if parts:
        steps, most = _RECOVER["recover.steps"], RECIPES["best"]["recover.steps"]
        parts.insert(0, _wrapped(_NOTE.format(samples=_SAMPLES, steps=steps, most=most)))
    if recipes := [each for each in records if each["method"] == "recipe"]:
        parts += [_wrapped(_RECIPES_NOTE), _recipes_table(recipes)]
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=120)


def _table(records: list[Record]) -> str:
    header = ["method, update", "perplexity", "ratio (95 %)", "KL, nats a token", "same top token", "minutes", "tokens"]
    lines = []
    for each in sorted(records, key=lambda record: float(record["pruned"])):
        trained = f" + {each['training_tokens']:,}" if each["training_tokens"] else ""
        lines.append(
            [
                f"{each['method']}, {each['way']}",
                *_quality(each),
                _minutes(each, sum(each["seconds"].values()) if None not in each["seconds"].values() else None),
                f"{each['calibration_tokens']:,}{trained}",
            ]
        )
    return markdown.table(header, lines)


def _recipes_table(records: list[Record]) -> str:
    header = ["model, recipe, pattern", "perplexity", "ratio (95 %)", "KL, nats a token", "same top token", "minutes"]
    return markdown.table(
        header,
        (
            [
                f"{each['model']}, {each['way']}, {each['pattern']}",
                *_quality(each),
                _minutes(each, each["command_seconds"]),
            ]
            for each in records
        ),
    )


def _quality(record: Record) -> list[str]:
    low, high = record["interval"]
    return [
        f"{record['pruned']:.2f}",
        f"{record['ratio']:.3f} ({low:.3f} to {high:.3f})",
        f"{record['kl']:.3f}",
        f"{record['top1_agreement']:.1%}",
    ]


def _minutes(record: Record, seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{'more than ' if record['resumed'] else ''}{seconds / 60:.1f}"


def _asked(ws: Path) -> dict[str, Any]:
    return load_settings(ws.joinpath("params.yaml")).model_dump(
        mode="json", include={"calibration": True, "prune": True, "recover": True, "engine": True}
    )


def _seconds(ws: Path, stage: str, answer: Mapping[str, Any], before: Sequence[Record]) -> float | None:
    """What a stage took: now, or when an earlier row asked for the very same of it; None: that is not known."""
    if answer["stages"][stage] == "ran":
        layers = seconds_per_layer(Workspace(ws)) or []  # a run that was stopped has done some before
        return max(float(answer["seconds"][stage]), sum(layers) if stage == "prune" else 0.0)
    needs = {"prune": ("calibration", "prune"), "recover": ("calibration", "prune", "recover")}[stage]
    asked = _asked(ws)
    alike = (each for each in before if all(each["settings"][section] == asked[section] for section in needs))
    return next((each["seconds"][stage] for each in alike), None)


def main() -> None:
    parser = command.parser(__doc__, "refits.json")
    parser.add_argument(
        "--params", type=Path, nargs="+", default=[ROOT / "params.yaml"], help="one params.yaml per model"
    )
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="NAME", help="which, with * and ?; see --list")
    parser.add_argument("--list", action="store_true", help="show the rows, and which are measured")
    arguments = parser.parse_args()
    wanted = chosen(arguments.rows)
    results = Results(arguments.results, arguments.fresh)
    failed = []
    for params in arguments.params:
        model = load_settings(params).register_.model
        for row in wanted:
            key = {"model": model, **row.key}
            is_there = results.find(key) is not None
            if arguments.list:
                print(f"{'measured' if is_there else '':10}{model}: {row.name}")
            elif not is_there:
                folder = f"{model}-{row.way}-{row.pattern}".replace(" ", "-").replace(":", "-")
                ws = workspace_with(params, FOLDER / "refits" / (folder if row.is_recipe else model))
                alike = [each for each in results.records if each["model"] == model and each["method"] != "recipe"]
                print(f"{model}: {row.name}", file=sys.stderr, flush=True)
                try:
                    print(results.add(key, measure(ws, row, alike)), flush=True)
                except JobFailed as error:
                    print(error, file=sys.stderr, flush=True)
                    failed.append(f"{model}: {row.name}")
    if failed:
        raise JobFailed(f"Not measured, because dass run failed: {'; '.join(failed)}.")


if __name__ == "__main__":
    command.run(main)
