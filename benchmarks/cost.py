"""What pruning cost: every setting run as `dass run` runs it, with its divergence and its zero-shot tasks.

    python -m benchmarks.cost [--params params.yaml ...] [--tasks arc_easy=FILE piqa=FILE] [--limit N]

Each row is a `dass run` in a workspace under .dass/benchmarks/cost, registered like any other: `dass history`, `diff`,
`answers` and `report` work there afterwards. The dense model is asked a task's questions once. What the results file
holds is not run again.
"""

from argparse import ArgumentTypeError
from pathlib import Path
from statistics import NormalDist
from typing import Any

from benchmarks import command, markdown
from benchmarks.paths import FOLDER, ROOT
from benchmarks.pipeline import dass_run, perplexities
from benchmarks.prepare import workspace_with
from benchmarks.results import Record, Results
from dass.files import read_json
from tasks.workspace.settings import load_settings

ROWS: dict[str, dict[str, Any]] = {
    "DaSS 50 %": {"method": "dass", "pattern": "unstructured", "sparsity": 0.5, "update": "none"},
    "Wanda 50 %": {"method": "wanda", "pattern": "unstructured", "sparsity": 0.5, "update": "none"},
    "DaSS 2:4": {"method": "dass", "pattern": "2:4", "sparsity": None, "update": "none"},
    "SparseGPT 2:4, reconstruct": {"method": "sparsegpt", "pattern": "2:4", "sparsity": None, "update": "reconstruct"},
}
_HALF_WIDTH = NormalDist().inv_cdf(0.975)


def run(ws: Path, row: str, tasks: dict[str, Path], limit: int | None) -> Record:
    """One `dass run`, and what it measured."""
    files = {name: str(file.resolve()) for name, file in tasks.items()}
    changes = {f"prune.{key}": value for key, value in ROWS[row].items()} | {
        "evaluate.tasks": list(tasks),
        "evaluate.task_files": files,
        "evaluate.limit": limit,
    }
    dass_run(ws, changes)
    metrics = read_json(ws / "metrics" / "evaluation.json")
    answered = read_json(ws / "metrics" / "tasks.json")["tasks"] if tasks else {}
    divergence = {key: metrics["divergence"][key] for key in ("tokens", "kl", "top1_agreement", "top5_overlap")}
    return {
        **perplexities(metrics),
        "divergence": divergence,
        "tasks": {
            name: {key: task[key] for key in ("documents", "dense", "pruned", "difference")}
            for name, task in answered.items()
        },
    }


def section(records: list[Record]) -> str:
    """The tables as markdown: predictions, then tasks where some were asked."""
    rows, answers = [], []
    for each in records:
        low, high = each["interval"]
        divergence = each["divergence"]
        rows.append(
            [
                f"{each['model']}, {each['row']}",
                f"{each['dense']:.2f}",
                f"{each['pruned']:.2f}",
                f"{each['ratio']:.3f} ({low:.3f} to {high:.3f})",
                f"{divergence['kl']:.3f}",
                f"{divergence['top1_agreement']:.1%}",
                f"{divergence['top5_overlap']:.1%}",
            ]
        )
        for name, task in each["tasks"].items():
            answers += [
                [f"{each['model']}, {each['row']}", f"{name}, {metric}", *_answers(task, metric)]
                for metric in task["difference"]
            ]
    header = [
        "model, what goes",
        "dense",
        "pruned",
        "ratio (95 %)",
        "KL, nats a token",
        "same top token",
        "top 5 shared",
    ]
    parts = [markdown.table(header, rows)]
    if answers:
        columns = ["model, what goes", "task", "dense", "pruned", "points (95 %)", "lost, gained", "p"]
        parts.append(markdown.table(columns, answers))
    return "\n\n".join(parts)


def _answers(task: dict[str, Any], metric: str) -> list[str]:
    between = task["difference"][metric]
    low, high = between["interval"]
    return [
        *(
            f"{task[which][metric]:.1%} ± {_HALF_WIDTH * task[which][f'{metric}_stderr']:.1%}"
            for which in ("dense", "pruned")
        ),
        f"{100 * between['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        f"{between['lost']}, {between['gained']}",
        f"{between['mcnemar_p']:.1g}",
    ]


def _task(text: str) -> tuple[str, Path]:
    name, found, file = text.partition("=")
    if not found or not Path(file).is_file():
        raise ArgumentTypeError(f"{text!r}: expected TASK=FILE, a file with the task's documents")
    return name, Path(file)


def main() -> None:
    parser = command.parser(__doc__, "cost.json")
    default = [ROOT / "params.yaml", ROOT / "examples/gemma-3-270m/params.yaml"]
    parser.add_argument("--params", type=Path, nargs="+", default=default, help="one params.yaml per model")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--tasks", type=_task, nargs="+", default=[], metavar="TASK=FILE", help="zero-shot tasks to ask"
    )
    parser.add_argument("--limit", type=int, help="the first so many documents of each task")
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for params in arguments.params:
        name = load_settings(params).register_.model
        for row in arguments.rows:
            key: Record = {"model": name, "row": row}
            if results.find(key) is None:
                ws = workspace_with(params, FOLDER / "cost" / name)
                print(results.add(key, run(ws, row, dict(arguments.tasks), arguments.limit)), flush=True)


if __name__ == "__main__":
    command.run(main)
