"""Which matrices to spare: allocation by sensitivity beside uniform and OWL's, under the same total.

    python -m benchmarks.allocations [--params params.yaml ...] [--workspace FOLDER]

Each row is a `dass study sensitivity --totals`. A study that was stopped goes on where it was, and what the results
file holds is not asked again. `python -m benchmarks.render` writes docs/results.md.
"""

from pathlib import Path

from benchmarks import command, markdown
from benchmarks.paths import FOLDER, ROOT
from benchmarks.pipeline import answer_of
from benchmarks.prepare import workspace_with
from benchmarks.results import Record, Results
from dass.files import read_json
from tasks.workspace.settings import load_settings

ASKED = {
    "shares of 30 to 70 %": ("30%,40%,50%,60%,70%", "0.5"),
    "2:4 or dense": ("2:4", "0.3,0.4"),
}
"""What a matrix may be pruned at, and the totals."""


def run(ws: Path, patterns: str, totals: str) -> Record:
    """One study, and what its allocations came to."""
    folder = ws / "study" / patterns.replace(":", "-").replace("%", "").replace(",", "-")
    asked = ["--patterns", patterns, "--totals", totals, "--output", str(folder)]
    answer = answer_of("study sensitivity", ws, *asked)
    about = read_json(folder / "study.json")
    return {
        "score": about["score"],
        "layout": about["layout"],
        "held_out": [about["held_out_windows"], about["held_out_length"]],
        "rank_correlation": answer["rank_correlation"],
        "allocations": answer["allocations"],
    }


def section(records: list[Record]) -> str:
    """The table as markdown: a row for each total and way to allocate."""
    rows = [
        [
            f"{each['model']}, {each['score']}, {each['what']}",
            f"{100 * found['total']:g} %",
            found["allocation"],
            f"{100 * found['removed']:.2f} %",
            f"{found['kl']:.4f}",
            f"{found['loss']:.4f}",
            f"{found['top1_agreement']:.1%}",
        ]
        for each in records
        for found in each["allocations"]
    ]
    header = ["model, score, a matrix may take", "total", "allocation", "removed", "KL, nats a token", "loss"]
    told = "; ".join(
        f"{each['model']}, {each['what']}: {each['rank_correlation']:.2f}, judged on "
        f"{each['held_out'][0]} × {each['held_out'][1]} held-out tokens"
        for each in records
    )
    table = markdown.table([*header, "same top token"], rows)
    return f"{table}\n\nRank correlation of the guess with the divergence: {told}."


def main() -> None:
    parser = command.parser(__doc__, "allocations.json")
    parser.add_argument("--params", type=Path, nargs="+", default=[ROOT / "params.yaml"], help="one for each model")
    parser.add_argument("--workspace", type=Path, help="where to work, for one model; else under .dass/benchmarks")
    arguments = parser.parse_args()
    if arguments.workspace is not None and len(arguments.params) > 1:
        parser.error("--workspace is one model's: give one file to --params")
    results = Results(arguments.results, arguments.fresh)
    for params in arguments.params:
        name = load_settings(params).register_.model
        for what, (patterns, totals) in ASKED.items():
            key: Record = {"model": name, "what": what}
            if results.find(key) is None:
                ws = workspace_with(params, arguments.workspace or FOLDER / "allocations" / name)
                answer_of("run", ws, "--until", "baseline")
                print(results.add(key, run(ws, patterns, totals)), flush=True)


if __name__ == "__main__":
    command.run(main)
