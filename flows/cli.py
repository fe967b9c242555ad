"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import errno
import json
import logging
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dass.errors import InputError, NumericalError
from flows.environment import configure
from flows.stages import STAGES, run_stage
from tasks.workspace import Workspace

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_DISK_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
_INTERRUPTION = "dass: interrupted. Finished layers are kept; run again to go on."
_interrupted: list[int] = []
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_STAGES_PANEL = "Stages (what dvc repro calls)"
_STAGE_HELP = (
    "Plain work, without Prefect. The settings are read once; the status is 1 when an input changed meanwhile."
)

app = typer.Typer(
    name="dass",
    add_completion=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Prune the MLPs of a GLU language model with DaSS, measure what that cost, version and register the result.

\b
    dass init my-model --model org/name@main     make a workspace
    dass run --workspace my-model                do everything in it
    dass run -S prune.sparsity=0.6               change a setting, then run
    dass show                                    the result again
    dass serve --cron "0 2 * * *"                run every night at two

A workspace is a folder with params.yaml, dvc.yaml and .dvc. Exit status: 0 done, 1 failed, 2 bad input.
""",
)

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace", "-w", metavar="FOLDER", envvar="DASS_WORKSPACE", help="The workspace; default: this folder."
    ),
]
StageWorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        metavar="FOLDER",
        envvar=["DVC_ROOT", "DASS_WORKSPACE"],
        help="The workspace; default: the one `dvc repro` works in, else this folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-S",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting in params.yaml first; repeatable. The value is YAML: 0.6, null, 2:4.",
    ),
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to make the workspace.")],
    model: Annotated[str | None, typer.Option(help="Hub id (org/name@revision) or folder of the model.")] = None,
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
    """
    from flows.initialise import make_workspace

    ws = make_workspace(folder, model, calibration, evaluation, changes or [])
    if as_json:
        _print_json({"workspace": str(ws.root)})
    else:
        print(f"Made {ws.root}: read params.yaml, then run: dass run --workspace {folder}")


@app.command()
def run(workspace: WorkspaceOption = Path(), changes: SetOption = None, as_json: JsonOption = False) -> None:
    """Fetch, calibrate, prune, measure and register, skipping every stage whose inputs are unchanged.

    A run that was stopped, even by kill -9, goes on behind its last finished layer.

    \b
        dass run
        dass run -S prune.pattern=2:4 -S prune.sparsity=null
        dass run --workspace my-model --json > result.json
    """
    ws = _open(workspace)
    from tasks.versioning import workspace_lock

    with workspace_lock(ws):
        from flows.overrides import change_settings
        from tasks.settings import load_settings

        changed = change_settings(ws, changes or [])
        for key, (before, now) in changed.items():
            _tell(f"{ws.params.name}: {key} {_yaml(before)} -> {_yaml(now)}")
        load_settings(ws.params)  # a wrong setting is told before the slow imports
        from flows.prefect_api import check_api

        check_api()
        from flows.compress import compress

        summary = compress(str(ws.root))
    from flows.summary import opening_commands

    commands = opening_commands(ws, summary.tracking_uri)
    if as_json:
        changes_made = {key: {"before": before, "now": now} for key, (before, now) in changed.items()}
        _print_json({**summary.as_json(), "changed": changes_made, "open": commands})
        return
    from rich.console import Console

    Console().print(summary.table())
    for what, command in commands.items():
        print(f"{what + ':':12} {command}")


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
    ws = _open(workspace)
    from tasks.show import render
    from tasks.show import show as show_result

    record = show_result(ws, version)
    if as_json:
        _print_json(record)
        return
    from rich.console import Console

    Console().print(render(record))


@app.command()
def serve(
    cron: Annotated[str, typer.Option(help='When, as five cron fields in UTC: "0 2 * * *" is every night at two.')],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Run the flow on a schedule, until stopped. Nothing else needs to be installed or running.

    With PREFECT_API_URL set, that server keeps the schedule; otherwise a server of its own is started on this machine.

    \b
        dass serve --cron "0 2 * * *"
    """
    ws = _open(workspace)
    from flows.serve import serve_schedule

    serve_schedule(ws, cron, _print_json if as_json else lambda told: _tell(_serving(told)))


def _serving(told: dict[str, Any]) -> str:
    return (
        f'compress runs in {told["workspace"]} at "{told["cron"]}" (UTC). Prefect UI: {told["ui"]}. Stop with Ctrl-C.'
    )


@app.command(rich_help_panel=_STAGES_PANEL)
def pin(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Write dass.lock.json: which bytes the sources are, which code runs. `dass run` does it by itself.

    Wanted before `dvc repro` when a local source, a hub branch or the installed dass has changed.
    """
    ws = _open(workspace)
    from tasks.versioning import pin_inputs, workspace_lock

    with workspace_lock(ws):
        pins = pin_inputs(ws)
    if as_json:
        _print_json(pins)
    else:
        print(f"Wrote {ws.lock_file}")


def _stage_command(name: str) -> Callable[[Path, bool], None]:
    def command(workspace: StageWorkspaceOption = Path(), as_json: JsonOption = False) -> None:
        run_stage(_open(workspace), name)
        if as_json:
            _print_json({"stage": name, "outcome": "ran"})

    return command


for _stage in STAGES.values():
    app.command(_stage.name, help=f"{_stage.help}\n\n{_STAGE_HELP}", rich_help_panel=_STAGES_PANEL)(
        _stage_command(_stage.name)
    )


def main() -> None:
    """Run the command line and exit with its status."""
    signal.signal(signal.SIGINT, _interrupt)
    status = run_command(sys.argv[1:])
    if _interrupted and status != INTERRUPTED:  # Ctrl-C also stopped the server, whose silence was noticed first
        _tell(_INTERRUPTION)
        status = INTERRUPTED
    sys.exit(status)


def _interrupt(number: int, frame: object) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


def run_command(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 bad input, 130 interrupted. What went wrong is one line on standard error.
    """
    try:
        status = int(app(arguments, prog_name="dass", standalone_mode=False) or DONE)
    except Exception as error:
        if os.environ.get("DASS_DEBUG"):
            raise
        status, message = _judged(error)
        if not _interrupted:
            _tell(f"dass: {' '.join(message.split())}")
    if status == INTERRUPTED:
        _tell(_INTERRUPTION)
    return status


def _judged(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error. Ours say what to do; others are named, and DASS_DEBUG=1 shows them whole."""
    from typer.exceptions import TyperException

    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, TyperException):
        return BAD_INPUT, f"{error.format_message()} See: dass --help"
    if refused := _refused_by_the_disk(error):
        return BAD_INPUT, f"{refused}. Free space or permissions are needed there, then run again."
    if isinstance(error, NumericalError) or type(error).__module__.startswith("tasks."):
        return FAILED, str(error)
    return FAILED, f"{type(error).__name__}: {error} (DASS_DEBUG=1 shows where)"


def _refused_by_the_disk(error: BaseException | None) -> str | None:
    """What could not be written, when that is why `error` came about: full, read-only or not ours."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(_DISK_SQLITE):
            return f"a database: {error}"
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors and tokenizers write in Rust
            number = int(match[1])
            return os.strerror(number) if number in _DISK else None
        error = error.__cause__ or error.__context__
    return None


def _open(folder: Path) -> Workspace:
    ws = Workspace.at(folder)
    configure(ws.root)
    log = logging.getLogger("dass")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    return ws


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
