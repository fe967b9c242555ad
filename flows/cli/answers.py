"""The command that lists what both models answered to zero-shot tasks: answers."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import REGISTRY_PANEL, JsonOption, ResultArgument, WorkspaceOption, model_of, open_workspace
from flows.cli.output import print_json, show_table


@app.command(rich_help_panel=REGISTRY_PANEL)
def answers(
    version: ResultArgument = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only this task's.")] = None,
    flipped: Annotated[
        bool, typer.Option("--flipped", help="Only where one model is right and the other is not.")
    ] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """List what the dense and the pruned model answered to each document of the zero-shot tasks.

    dass answers champion --flipped
    dass answers 3 --task arc_easy --json
    """
    ws = open_workspace(workspace)
    from tasks.registry.asked_answers import answers as read_answers
    from tasks.registry.asked_answers import answers_table
    from tasks.registry.asked_answers import as_json as plain

    rows = read_answers(ws, model_of(ws), version, task, flipped)
    if as_json:
        print_json([plain(row) for row in rows])
    else:
        show_table(answers_table(rows))
