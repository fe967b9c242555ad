"""The command that looks at what a run needs: doctor."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import JsonOption, open_workspace
from flows.cli.output import print_json, show_table
from flows.exit_status import DONE, FAILED


@app.command()
def doctor(
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            "-w",
            metavar="FOLDER",
            envvar="DASS_WORKSPACE",
            help="The workspace; default: this folder, if it is one.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Look at what a run needs: device, torch, disk, git, dvc.yaml, DVC remote, MLflow, Prefect, signing key; and tell
    the mend.

    Nothing is made or changed. Status 1 when something must be mended. Outside a workspace only the machine is looked
    at.

        dass doctor
        dass doctor --json
    """
    ws = None if workspace is None and not os.path.exists("params.yaml") else open_workspace(workspace or Path())
    from flows.doctor import doctor as examine
    from flows.doctor import finding_row

    findings = []
    for finding in examine(ws):
        findings.append(finding)
        if not as_json:
            show_table(finding_row(finding))  # at once: a server that does not answer takes a while
    if as_json:
        print_json([each.as_json() for each in findings])
    return FAILED if any(each.state == "mend" for each in findings) else DONE
