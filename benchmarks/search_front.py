"""Does a search find a better front than a grid of as many points? Perplexity's ratio against MLP sparsity.

    python -m benchmarks.search_front [--params PARAMS] [--workspace FOLDER] [--search tpe] [--seed 0] [--trials 20]

Both go over the same two settings, prune.sparsity from 0.3 to 0.7 (the search in steps of 0.05) and prune.alpha from 0
to 1, with DaSS and one shared statistics pass; the grid of 5 × 4 points is made smaller or larger with --trials. Each
is a `dass sweep`: when it was stopped it goes on where it was, no point is made twice, and the same seed gives the same
points. A front is judged by the area that it dominates, in sparsity × ln ratio.
"""

import math
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import command, markdown
from benchmarks.paths import FOLDER, ROOT
from benchmarks.pipeline import answer_of
from benchmarks.prepare import workspace_with
from dass.errors import InputError
from tasks.plots import STYLE, save_figure
from tasks.workspace.settings import load_settings

Point = tuple[float, float]
"""What goes (larger is better), and perplexity's ratio (smaller is better)."""

_LOW, _HIGH = 0.3, 0.7
_STEP = 0.05
"""The search can come to both ends of the grid, which a draw out of a range hardly ever does."""
_FIXED = ["prune.method=dass", "prune.pattern=unstructured", "prune.propagation=dense"]
_COLOURS = {"grid": "#999999", "search": "#0072B2"}


def grid(trials: int) -> list[str]:
    """So many points: 4 exponents, and as many sparsities as that leaves.

    Raises:
        InputError: no grid of 4 exponents has so many points.
    """
    sparsities, left = divmod(trials, 4)
    if left or sparsities < 2:
        raise InputError(f"--trials is {trials}: expected a multiple of 4, 8 or more: the grid has 4 exponents.")
    step = (_HIGH - _LOW) / (sparsities - 1)
    values = ",".join(f"{_LOW + at * step:.4g}" for at in range(sparsities))
    return [f"prune.sparsity={values}", "prune.alpha=0,0.333,0.667,1"]


def searched(search: str, trials: int, seed: int) -> list[str]:
    """As many points, chosen by Optuna."""
    ranges = [f"prune.sparsity={{low: {_LOW}, high: {_HIGH}, step: {_STEP}}}", "prune.alpha={low: 0.0, high: 1.0}"]
    return [*ranges, f"sweep.search={search}", f"sweep.trials={trials}", f"sweep.seed={seed}"]


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats, by sparsity."""
    found: list[Point] = []
    for sparsity, ratio in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not found or ratio < found[-1][1]:
            found.append((sparsity, ratio))
    return found[::-1]


def dominated(points: Sequence[Point], corner: Point) -> float:
    """The area, in sparsity × ln ratio, of everything that some point beats and that beats the corner."""
    area, before = 0.0, corner[0]
    for sparsity, ratio in front(points):
        if sparsity > before and ratio < corner[1]:
            area += (sparsity - before) * math.log(corner[1] / ratio)
            before = sparsity
    return area


def figure(found: dict[str, list[Point]], told: dict[str, str], title: str) -> Figure:
    """All points, and the fronts as steps."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        made = Figure(figsize=(8, 5), layout="constrained")
        axes = made.subplots()
        for name, points in found.items():
            across, ratios = zip(*points, strict=True)
            axes.scatter(across, ratios, s=14, color=_COLOURS[name], alpha=0.6)
            across, ratios = zip(*front(points), strict=True)
            axes.step(across, ratios, where="pre", color=_COLOURS[name], label=told[name])
        axes.set(title=title, xlabel="share of MLP weights that go", ylabel="perplexity, × dense", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper left")
    return made


def _sweep(workspace: Path, changes: Sequence[str]) -> list[dict[str, Any]]:
    """Points of one `dass sweep` that were measured."""
    asked = [word for change in [*_FIXED, *changes] for word in ("-S", change)]
    return [point for point in answer_of("sweep", workspace, *asked)["points"] if point["failed"] is None]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml", help="the model, its texts and windows")
    parser.add_argument("--workspace", type=Path, help="where to work; else a folder under .dass/benchmarks")
    parser.add_argument("--search", choices=("tpe", "nsga2"), default="tpe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=20, help="points of each")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "search-front.png")
    arguments = parser.parse_args()
    points_of_grid = grid(arguments.trials)
    name = load_settings(arguments.params).register_.model
    workspace = workspace_with(arguments.params, arguments.workspace or FOLDER / "search_front" / name)
    changes = {"grid": points_of_grid, "search": searched(arguments.search, arguments.trials, arguments.seed)}
    done = {what: _sweep(workspace, asked) for what, asked in changes.items()}
    found = {
        what: [(each["figures"]["sparsity.mlp"], each["figures"]["ratio"]) for each in points]
        for what, points in done.items()
    }
    corner = _LOW - 0.05, max(ratio for points in found.values() for _, ratio in points)
    areas = {what: dominated(points, corner) for what, points in found.items()}
    names = {"grid": "grid", "search": f"{arguments.search}, seed {arguments.seed}"}
    told = {what: f"{names[what]}: {len(found[what])} points, area {areas[what]:.4f}" for what in found}
    title = f"{name}: a search against a grid, {arguments.trials} points each"
    save_figure(figure(found, told, title), arguments.output)
    rows = [
        [names[what], str(len(points)), str(len(front(points))), f"{areas[what]:.4f}", f"{_seconds(done[what]):.0f} s"]
        for what, points in found.items()
    ]
    print(markdown.table(["", "points", "on the front", "area dominated", "masks and figures"], rows))
    print(f"\nThe search's front is {areas['search'] / areas['grid']:.3f} × the grid's. Wrote {arguments.output}")


def _seconds(points: Sequence[dict[str, Any]]) -> float:
    return sum(sum((each["seconds"] or {}).values()) for each in points)


if __name__ == "__main__":
    command.run(main)
