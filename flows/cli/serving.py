"""Commands that go on until they are stopped: serve and ui."""

import os
import sys
import webbrowser
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import app
from flows.cli.completion import settings_keys
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, reveal, tell

_LONGEST = 300  # characters of a message of Prefect's


@app.command()
def serve(
    cron: Annotated[
        str, typer.Option(help='When, as five cron fields: "0 2 * * *" is every night at two, in --timezone.')
    ],
    zone: Annotated[
        str, typer.Option("--timezone", metavar="NAME", help="The cron fields' time zone, such as Europe/Berlin.")
    ] = "UTC",
    jitter: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            help="Start each run up to so much later, where many schedules share a server or an archive.",
        ),
    ] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="SECTION.KEY=VALUE",
            autocompletion=settings_keys,
            help="A setting for this schedule's runs only: params.yaml stays as it is; repeatable.",
        ),
    ] = None,
    revision: Annotated[
        str,
        typer.Option(
            metavar="REV", help="What each run checks out, as git names it when the run starts: a branch, a tag, HEAD."
        ),
    ] = "HEAD",
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Run the flow on a schedule, until stopped. Nothing else needs to be installed or running.

    Runs work in .dass/checkout, with what is committed: your files are not touched. DVC's cache and remotes, MLflow and
    the ledger are the workspace's. Where that is not in git, runs work in the workspace itself.

    One line says when a run starts, one how it ended and which version it made, and one when the next starts.

    The server that PREFECT_API_URL names keeps the schedule; without one, a server of its own is started here,
    for this machine only. Its password is made anew at each start and told once, unless Prefect's setting
    PREFECT_SERVER_API_AUTH_STRING gives one (user:password), which is never shown.

        dass serve --cron "0 2 * * *"
        dass serve --cron "30 1 * * mon-fri" --timezone Europe/Berlin --jitter 600
        dass serve --cron "0 3 * * *" --revision main
        dass serve --cron "0 4 * * sun" -S prune.pattern=2:4 -S prune.sparsity=null
    """
    ws = open_workspace(workspace)
    from flows.serve import serve_schedule
    from flows.timetable import Timetable

    timetable = Timetable.read(cron, zone, jitter)
    serve_schedule(ws, timetable, changes or [], revision, _print_event if as_json else _tell_of_schedule)


@app.command()
def ui(
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open them in a browser too, where there is a desktop.")
    ] = True,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Show a workspace's versions and runs in MLflow's UI and its flow runs in Prefect's, until stopped.

    It tells where, and the password for Prefect's (user:password). Both listen on this machine's loopback only;
    MLflow's asks for no password.

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
            reveal(f"MLflow {'UI' if what == 'ui' else what}: {page}")
    _tell_of_ui({**told, "ui": told["runs"]})


def _print_event(told: dict[str, Any]) -> None:
    print_json({name: each.isoformat() if isinstance(each, datetime) else each for name, each in told.items()})


def _tell_of_schedule(told: dict[str, Any]) -> None:
    if told["event"] == "scheduled":
        from flows.timetable import Timetable

        timetable = Timetable(told["cron"], told["timezone"], told["jitter"])
        changed = f" with {', '.join(told['changes'])}" if told["changes"] else ""
        tell(f"compress runs in {told['workspace']} at {timetable.told}{changed}. Stop with Ctrl-C.")
        if told["revision"]:
            tell(f"Each run works with what is committed at {told['revision']}, in .dass/checkout.")
        else:
            tell("It is not in git, or has no commit yet: runs work in this folder itself.")
        _tell_of_ui(told)
    elif told["event"] == "due":
        tell(f"The next run starts at {told['at']:%Y-%m-%d %H:%M:%S %Z}.")
    elif told["event"] == "started":
        tell(f"{datetime.now():%H:%M:%S} run {told['run']} starts")
    else:
        made = f", version {told['version']}" if told["version"] else ""
        why = f": {_one_line(told['message'])}" if told["message"] and told["state"] != "Completed" else ""
        tell(f"{datetime.now():%H:%M:%S} run {told['run']} ended: {told['state']}{made}, {told['seconds']:.1f} s{why}")


def _one_line(text: str) -> str:
    """A message on one line, cut where it is long."""
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def _tell_of_ui(told: dict[str, Any]) -> None:
    tell(f"Prefect UI: {told['ui']}")
    login = told["login"]
    if login and login["chosen"]:
        tell(f"Its password is the one of {login['chosen']}.")
    elif login:
        reveal(f"Password for now: {login['password']}")
