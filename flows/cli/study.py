"""`dass study`: what a model's activations look like, which score serves it, which matrices it cannot spare."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, tell

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Measure what decides which score is right for a model, and which of its matrices it cannot spare.

A study reads what dass run --until baseline made and changes nothing of it. Killed, it goes on behind the last piece
that was finished; run again, it computes only what is missing.
""",
)
app.add_typer(study, name="study")

_T = TypeVar("_T")
_OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Where results go; default: study/ in the workspace."),
]
_PatternsOption = Annotated[str, typer.Option(metavar="LIST", help='Patterns: shares such as "50%", and N:M.')]
_WindowsOption = Annotated[int, typer.Option(metavar="N", help="Held-out windows to judge by, from the first.")]


@study.command()
def outliers(
    patterns: _PatternsOption = "50%,4:8,2:4",
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="Draw the calibration windows; for error bars.")
    ] = "0,1,2,3,4",
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="Calibration windows; default: calibration.samples.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(metavar="LIST", help="Other numbers of windows, tried at the first pattern.")
    ] = "",
    sources: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Other windows, tried at the first pattern: self, or names under calibration.texts."
        ),
    ] = "",
    side_seeds: Annotated[
        int, typer.Option(metavar="N", help="With how many of the seeds sizes and sources are tried.")
    ] = 3,
    alphas: Annotated[
        str, typer.Option(metavar="LIST", help="DaSS's exponents; 0.5 is always tried.")
    ] = "0,0.25,0.5,0.75,1",
    windows: _WindowsOption = 8,
    output: _OutputOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """How much sits in outlier channels, and whether DaSS, which leaves the input's norms out, loses to Wanda by that.

    Per layer: the share of channels beyond 5, 7 and 10 times the mean norm, kurtosis, and what the top 1 % hold. Then
    only gate and up are pruned (magnitude, Wanda, DaSS), and only down, by windows of several seeds. One pass through
    the dense model serves every score and pattern of a seed.

    Writes outliers.md, its pictures, and every number as parquet.

        dass study outliers
        dass study outliers --patterns 2:4 --seeds 0,1 --windows 4
        dass study outliers --sizes 8,512 --sources self
    """
    from tasks.workspace.settings import load_settings

    ws = open_workspace(workspace)
    settings = load_settings(ws.params)
    from tasks.study.cells import Asked

    asked = Asked(
        tuple(_listed("patterns", patterns, str)),
        tuple(_listed("seeds", seeds, int)),
        settings.calibration.samples if samples is None else samples,
        tuple(_listed("sizes", sizes, int)),
        tuple(_listed("sources", sources, str)),
        side_seeds,
        tuple(_listed("alphas", alphas, float)),
        windows,
    )
    from tasks.study.results import study_outliers
    from tasks.workspace.gpus import gpus_held
    from tasks.workspace.lock import workspace_lock

    command = shlex.join(["dass", "study", "outliers", *asked.as_options()])
    with workspace_lock(ws), gpus_held(ws, settings.engine, "dass study"):
        done = study_outliers(ws, settings, asked, output or ws.root / "study" / "outliers", command)
    _show(done, as_json)


@study.command()
def sensitivity(
    patterns: _PatternsOption = "2:4",
    totals: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Shares of all MLP weights, such as 0.4: also allocate the patterns under each, exactly, and judge "
            "that beside uniform and OWL's.",
        ),
    ] = "",
    windows: Annotated[
        int, typer.Option(metavar="N", help="Calibration windows to judge by, and held-out ones for allocations.")
    ] = 4,
    output: _OutputOption = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """What the whole model loses when one matrix of one layer is pruned, and what a cheap guess says of it.

    The score is prune.method with prune.alpha and prune.layout, the windows are calibration's. Layers in front of the
    pruned one are walked once for all of its matrices and patterns. Divergences are taken on calibration windows that
    no statistics are taken on; allocations are judged on the held-out ones.

    Writes sensitivity.md, a heat map, every number as parquet, and with --totals the chosen pattern of each matrix.

        dass study sensitivity
        dass study sensitivity --patterns 2:4,4:8 --totals 0.3,0.4
        dass study sensitivity --patterns 30%,40%,50%,60%,70% --totals 0.5
    """
    from tasks.workspace.settings import load_settings

    ws = open_workspace(workspace)
    settings = load_settings(ws.params)
    from tasks.study.matrices import AskedMatrices

    asked = AskedMatrices(tuple(_listed("patterns", patterns, str)), windows, tuple(_listed("totals", totals, float)))
    from tasks.study.sensitivity import study_sensitivity
    from tasks.workspace.gpus import gpus_held
    from tasks.workspace.lock import workspace_lock

    command = shlex.join(["dass", "study", "sensitivity", *asked.as_options()])
    with workspace_lock(ws), gpus_held(ws, settings.engine, "dass study"):
        done = study_sensitivity(ws, settings, asked, output or ws.root / "study" / "sensitivity", command)
    _show(done, as_json)


@study.command("page")
def page(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="What dass study outliers wrote, a folder for each model.")
    ],
    file: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, Markdown.")] = Path(
        "study.md"
    ),
    as_json: JsonOption = False,
) -> None:
    """Put studies of several models on one page, and tell how DaSS against Wanda moves with their size.

    dass study page small/study/outliers large/study/outliers --output study.md
    """
    from tasks.study.results import write_page

    _show(write_page(folders, file), as_json)


def _show(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    for line in done["verdict"]:
        print(line)
    tell(f"Wrote {done['page']}")


def _listed(name: str, text: str, read: Callable[[str], _T]) -> list[_T]:
    """The values of a list with commas.

    Raises:
        InputError: one of them is of another kind.
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            if text.strip():
                raise InputError(f"--{name} is {text!r}: expected values with a comma between each two.")
            continue
        try:
            found.append(read(part))
        except ValueError:
            kind = "whole numbers" if read is int else "numbers"
            raise InputError(f"--{name} holds {part!r}: expected {kind}, with commas between them.") from None
    return found
