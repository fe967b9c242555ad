"""The options and arguments that commands share, and how they open their workspace."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.completion import settings_keys, versions
from flows.cli.log import log_to_terminal
from flows.environment import configure
from tasks.workspace.folder import Workspace

REGISTRY_PANEL = "Registry (which version, why, who, and can it be proved)"
STAGES_PANEL = "Stages (what dvc repro calls)"

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
        autocompletion=settings_keys,
        help="Change a setting in params.yaml first; repeatable. The value is YAML: 0.6, null, 2:4.",
    ),
]
VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", autocompletion=versions, help="A version's number or alias.")
]
ResultArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[VERSION]",
        autocompletion=versions,
        help="A registered version's number or alias. Without it: the workspace's result.",
    ),
]


def open_workspace(folder: Path) -> Workspace:
    ws = Workspace.at(folder)
    configure(ws.root)
    log_to_terminal()
    return ws


def model_of(ws: Workspace) -> str:
    from tasks.workspace.settings import load_settings

    return load_settings(ws.params).register_.model
