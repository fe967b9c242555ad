"""Commands that look at a workspace as a whole and keep it small: status and gc."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import app
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, show_table, tell
from flows.exit_status import DONE, FAILED, INFRASTRUCTURE
from tasks.workspace.sizes import in_words

if TYPE_CHECKING:
    from tasks.disk.freeing import Freed


@app.command()
def status(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the last runs.")] = 10,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    """Show how a workspace stands: who works in it, how the last runs ended (a schedule's and a person's), the champion
    and whether it was proved, when the next run starts, what is stuck and how it goes on, and what the disk holds.

    Looks only: nothing is taken, repaired or waited for. Status 1 when a part could not be looked at; the rest is told.

        dass status
        dass status --limit 3
        dass status --json
    """
    ws = open_workspace(workspace)
    from flows.status import status as read_status
    from flows.status_tables import status_tables

    record = read_status(ws, limit)
    if as_json:
        print_json(record)
    else:
        show_table(status_tables(record))
    return FAILED if record["unknown"] else DONE


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Free it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    keep_sweeps: Annotated[
        bool, typer.Option("--keep-sweeps", help="Leave the masks of finished sweeps, here and in MLflow.")
    ] = False,
    deleted_versions: Annotated[
        bool,
        typer.Option(
            "--deleted-versions",
            help="Also free the files of versions that were deleted in MLflow; the ledger still names them.",
        ),
    ] = False,
    given_up: Annotated[
        list[str] | None,
        typer.Option(
            "--given-up",
            metavar="ADDRESS",
            help="An MLflow store that git remembers versions in, and nobody wants any more; repeatable.",
        ),
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> int:
    """Free what nothing needs: work folders, objects of DVC's cache, MLflow's files. Shows what, how much and why, and
    asks.

    What stays: everything that a registered version is or needs for dass verify --replay, that the ledger names, that a
    commit, a branch, an experiment or a work tree names, that a run or sweep may go on with, and whatever dass did not
    make. DVC's remotes are never touched, nor what is kept for all workspaces ($DASS_CACHE).

    Where a ledger does not verify, a version's files are gone or a store does not answer, nothing is freed. Killed in
    the middle, nothing needed is lost, and the same command goes on.

        dass gc --dry-run
        dass gc
        dass gc --yes --keep-sweeps
        dass gc --yes --json
    """
    ws = open_workspace(workspace)
    from flows.gc_tables import plan_tables
    from tasks.disk.freeing import Asked, free, look
    from tasks.registry.registration import check_reachable

    check_reachable(ws)
    asked = Asked(sweeps=not keep_sweeps, deleted_versions=deleted_versions, given_up=tuple(given_up or ()))
    plan = look(ws, asked)
    if not as_json:
        show_table(plan_tables(plan))
    is_wanted = bool(plan.candidates) and not dry_run and (yes or (not as_json and _agreed(plan.bytes)))
    freed = free(ws, asked, plan.names) if is_wanted else None
    if as_json:
        print_json({**plan.as_json(), "freed": None if freed is None else freed.as_json()})
    return DONE if freed is None else _told(freed)


def _agreed(size: int) -> bool:
    """Ask whoever sits there; where nobody does, say what to type."""
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        tell("Nothing was removed: there is no terminal to ask at. To free it: dass gc --yes")
        return False
    try:
        is_agreed = typer.confirm(f"Free {in_words(size)}?", default=False, err=True)
    except typer.Abort:  # Ctrl-D
        is_agreed = False
    if not is_agreed:
        tell("Nothing was removed.")
    return is_agreed


def _told(freed: "Freed") -> int:
    tell(f"Freed {in_words(freed.bytes)}: files and folders gone, {freed.count}; needed by now and kept, {freed.kept}.")
    for line in freed.failed:
        tell(f"could not be removed: {line}")
    return INFRASTRUCTURE if freed.failed else DONE
