"""The command line. It reads arguments and prints; the work is elsewhere, and imported when it is wanted."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dass.errors import InputError
from flows.environment import configure
from flows.exit_status import DONE, FAILED, INTERRUPTED, judged
from flows.stages import STAGES, run_stage
from tasks.workspace.folder import Workspace

_INTERRUPTION = "dass: interrupted. Finished layers are kept; run again to go on."
_interrupted: list[int] = []
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
    dass history                                 every version, and who decided what
    dass promote                                 make the newest version champion, if every rule holds
    dass verify champion                         prove it: files, ledger, weights, pattern
    dass rollback --reason "..."                 back to the champion before
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
def run(
    workspace: WorkspaceOption = Path(),
    changes: SetOption = None,
    then_promote: Annotated[
        bool, typer.Option("--promote", help="Make the version champion at the end, if every rule holds.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Fetch, calibrate, prune, measure and register, skipping every stage whose inputs are unchanged.

    A run that was stopped, even by kill -9, goes on behind its last finished layer.

    \b
        dass run
        dass run --promote
        dass run -S prune.pattern=2:4 -S prune.sparsity=null
        dass run --workspace my-model --json > result.json
    """
    ws = _open(workspace)
    from tasks.workspace.lock import workspace_lock

    with workspace_lock(ws):
        from flows.overrides import change_settings
        from tasks.workspace.settings import load_settings

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
    decision = None
    if then_promote:
        from flows.promote import promote as promote_flow

        decision = promote_flow(str(ws.root), summary.version)
    if as_json:
        changes_made = {key: {"before": before, "now": now} for key, (before, now) in changed.items()}
        decided = {} if decision is None else {"decision": decision.as_json()}
        _print_json({**summary.as_json(), "changed": changes_made, "open": commands, **decided})
    else:
        _show(summary.table())
        if decision is not None:
            _show_decision(decision)
        for what, command in commands.items():
            print(f"{what + ':':12} {command}")
    return DONE if decision is None or decision.promoted else FAILED


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
    from tasks.registry.show import render
    from tasks.registry.show import show as show_result

    record = show_result(ws, version)
    if as_json:
        _print_json(record)
    else:
        _show(render(record))


VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number or alias.")]
_REGISTRY_PANEL = "Registry (which version, why, who, and can it be proved)"


@app.command(rich_help_panel=_REGISTRY_PANEL)
def history(
    model: Annotated[str | None, typer.Option(help="Registered model; default: register.model.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    r"""Show every version of the model, newest first: what it is, who made it when, and whether it was proved.

    With --json also every event of the ledger.

    \b
        dass history
        dass history --model smollm2-135m-dass --json
    """
    ws = _open(workspace)
    from tasks.promotion.history import history as read_history
    from tasks.promotion.history import history_table

    record = read_history(ws, model or _model(ws))
    if record["repaired"]:
        _tell(record["repaired"])
    if as_json:
        _print_json(record)
    else:
        _show(history_table(record))


@app.command(rich_help_panel=_REGISTRY_PANEL)
def diff(
    before: Annotated[str, typer.Argument(metavar="V1", help="A version's number or alias.")],
    after: Annotated[str, typer.Argument(metavar="V2", help="Another one.")],
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    r"""Show what lies between two versions: settings, calibration data, figures, and how many mask bits moved.

    \b
        dass diff champion challenger
        dass diff 1 2 --json
    """
    ws = _open(workspace)
    from tasks.promotion.history import diff as read_diff
    from tasks.promotion.history import diff_tables

    record = read_diff(ws, _model(ws), before, after)
    if as_json:
        _print_json(record)
    else:
        _show(diff_tables(record))


@app.command(rich_help_panel=_REGISTRY_PANEL)
def verify(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|FOLDER", help="A version's number, alias or downloaded folder.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version of the model.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also prune again from the data DVC kept, and compare the masks.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    r"""Prove a version: files and signature, ledger, weights = base times masks, pattern. Status 1 when a step fails.

    \b
        dass verify champion
        dass verify --all
        dass verify 3 --replay
    """
    if (version is None) != every:
        raise InputError("verify takes a VERSION, a FOLDER, or --all. See: dass verify --help")
    ws = _open(workspace)
    from tasks.registry.registration import check_reachable
    from tasks.promotion.verification import proof_table, verify_all, verify_folder, verify_version

    check_reachable(ws)
    model = _model(ws)
    if version is None:
        proofs = list(verify_all(ws, model, replay=replay))
    elif Path(version).is_dir():
        proofs = [verify_folder(ws, model, Path(version), replay=replay)]
    else:
        proofs = [verify_version(ws, model, version, replay=replay)]
    if as_json:
        _print_json([proof.as_json() for proof in proofs])
    else:
        for proof in proofs:
            _show(proof_table(proof))
    return FAILED if any(proof.failed for proof in proofs) else DONE


@app.command(rich_help_panel=_REGISTRY_PANEL)
def promote(
    version: VersionArgument = "challenger",
    force: Annotated[
        bool, typer.Option("--force", help="Promote although a rule does not hold; recorded as such.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; needed with --force.")] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    r"""Make a version champion if every rule under `promote` in params.yaml holds. Status 1 when it is refused.

    \b
        dass promote
        dass promote 3
        dass promote 3 --force --reason "demo on Friday"
    """
    ws = _open(workspace)
    from flows.prefect_api import check_api

    check_api()
    from flows.promote import promote as promote_flow

    decision = promote_flow(str(ws.root), version, force, reason)
    if as_json:
        _print_json(decision.as_json())
    else:
        _show_decision(decision)
    return DONE if decision.promoted else FAILED


@app.command(rich_help_panel=_REGISTRY_PANEL)
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why; goes to the ledger.")],
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="An earlier champion; default: the one before.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    r"""Make an earlier champion the champion again, after its proof was checked once more.

    \b
        dass rollback --reason "worse answers in production"
        dass rollback --to 2 --reason "..."
    """
    ws = _open(workspace)
    from flows.prefect_api import check_api

    check_api()
    from flows.promote import rollback as rollback_flow

    done = rollback_flow(str(ws.root), reason, to)
    if done.told:
        _tell(done.told)
    if as_json:
        _print_json({"version": done.entry.version, "entry": done.entry.n, **done.entry.details})
    else:
        print(f"{done.entry.model}: version {done.entry.version} is champion again (ledger entry {done.entry.n}).")


@app.command(rich_help_panel=_REGISTRY_PANEL)
def materialize(
    version: Annotated[
        str | None, typer.Argument(help="A version's number or alias. Without it: the stage of dvc.yaml.")
    ] = None,
    folder: Annotated[Path | None, typer.Argument(help="Where the checkpoint is written; must not exist yet.")] = None,
    workspace: StageWorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    r"""Write a version's full checkpoint into a folder: base times masks, when the version holds masks only.

    Without arguments it is the stage that `dvc repro` calls: artifacts/pruned from artifacts/base and artifacts/masks.

    \b
        dass materialize champion ./champion
    """
    ws = _open(workspace)
    if version is None:
        _run_stage(ws, "materialize", as_json)
        return
    if folder is None:
        raise InputError(f"materialize {version} needs a folder to write to: dass materialize {version} FOLDER")
    from tasks.registry.loading import materialize_registered

    materialize_registered(ws, _model(ws), version, folder)
    if as_json:
        _print_json({"version": version, "folder": str(folder.resolve())})
    else:
        print(f"Wrote {folder}")


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
    from tasks.workspace.lock import workspace_lock
    from tasks.versioning.stages import pin_inputs

    with workspace_lock(ws):
        pins = pin_inputs(ws)
    if as_json:
        _print_json(pins)
    else:
        print(f"Wrote {ws.lock_file}")


def _stage_command(name: str) -> Callable[[Path, bool], None]:
    def command(workspace: StageWorkspaceOption = Path(), as_json: JsonOption = False) -> None:
        _run_stage(_open(workspace), name, as_json)

    return command


def _run_stage(ws: Workspace, name: str, as_json: bool) -> None:
    run_stage(ws, name)
    if as_json:
        _print_json({"stage": name, "outcome": "ran"})


for _stage in STAGES.values():
    if _stage.name == "materialize":
        continue  # above: it also writes a version's checkpoint
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
        status, message = judged(error)
        if not _interrupted:
            _tell(f"dass: {' '.join(message.split())}")
    if status == INTERRUPTED:
        _tell(_INTERRUPTION)
    return status


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


def _model(ws: Workspace) -> str:
    from tasks.workspace.settings import load_settings

    return load_settings(ws.params).register_.model


def _show(table: Any) -> None:
    from rich.console import Console

    console = Console()
    # A file or a pipe has no width of its own, and 80 columns would cut the tables there.
    (console if console.is_terminal else Console(width=160)).print(table)


def _show_decision(decision: Any) -> None:
    if decision.repaired:
        _tell(decision.repaired)
    _show(decision.table())


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
