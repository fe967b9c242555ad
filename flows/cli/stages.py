"""Commands that `dvc repro` calls, one a stage, and `pin`, which it wants beforehand."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.options import (
    REGISTRY_PANEL,
    STAGES_PANEL,
    JsonOption,
    StageWorkspaceOption,
    WorkspaceOption,
    model_of,
    open_workspace,
)
from flows.cli.output import print_json
from flows.stages import STAGES, run_stage
from tasks.workspace.folder import Workspace

_STAGE_HELP = (
    "Plain work, without Prefect. The settings are read once; the status is 1 when an input changed meanwhile."
)


@app.command(rich_help_panel=STAGES_PANEL)
def pin(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Write dass.lock.json anew: which bytes the sources are, which code runs.

    A run pins a uri when it first meets it, and from then on refuses other bytes and stays with the commit of a hub
    branch. Wanted when the new content is meant, and before `dvc repro` when the installed dass has changed.
    """
    ws = open_workspace(workspace)
    from tasks.versioning.stages import pin_inputs
    from tasks.workspace.lock import workspace_lock

    with workspace_lock(ws):
        pins = pin_inputs(ws)
    if as_json:
        print_json(pins)
    else:
        print(f"Wrote {ws.lock_file}")


@app.command(rich_help_panel=REGISTRY_PANEL)
def materialize(
    version: Annotated[
        str | None, typer.Argument(help="A version's number or alias. Without it: the stage of dvc.yaml.")
    ] = None,
    folder: Annotated[Path | None, typer.Argument(help="Where the checkpoint is written; must not exist yet.")] = None,
    workspace: StageWorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a version's full checkpoint into a folder: base times masks, when the version holds masks only.

    Without arguments it is the stage that `dvc repro` calls: artifacts/pruned from artifacts/base and artifacts/masks.

        dass materialize champion ./champion
    """
    ws = open_workspace(workspace)
    if version is None:
        _run_stage(ws, "materialize", as_json)
        return
    if folder is None:
        raise InputError(f"materialize {version} needs a folder to write to: dass materialize {version} FOLDER")
    from tasks.registry.loading import materialize_registered

    materialize_registered(ws, model_of(ws), version, folder)
    if as_json:
        print_json({"version": version, "folder": str(folder.resolve())})
    else:
        print(f"Wrote {folder}")


def _stage_command(name: str) -> Callable[[Path, bool], None]:
    def command(workspace: StageWorkspaceOption = Path(), as_json: JsonOption = False) -> None:
        _run_stage(open_workspace(workspace), name, as_json)

    return command


def _run_stage(ws: Workspace, name: str, as_json: bool) -> None:
    run_stage(ws, name)
    if as_json:
        print_json({"stage": name, "outcome": "ran"})


for _stage in STAGES.values():
    if _stage.name == "materialize":
        continue  # above: it also writes a version's checkpoint
    app.command(_stage.name, help=f"{_stage.help}\n\n{_STAGE_HELP}", rich_help_panel=STAGES_PANEL)(
        _stage_command(_stage.name)
    )
