"""The command that other machines of a run are given."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json


@app.command()
def join(
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait until a run works in the workspace.")
    ] = 600.0,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Work along with a run of another machine, as one of its nodes, until it ends.

    The machines share the disk that the workspace is on, and have the same code and libraries. On the first of them:

        dass run -S engine.nodes=2 -S engine.processes=8 -S engine.rdzv_endpoint=node0:29500

    On each of the others, before or after that:

        dass join --workspace /shared/my-model

    Runs that a schedule started are found, too, in the checkout where they work. It ends with each run; for the next:

        while dass join --workspace /shared/my-model --wait 100000; do :; done

    The first node's settings count. The nodes send each other tensors unencrypted, and whoever reaches the port may
    spoil a run: they belong in a network of their own.
    """
    ws = open_workspace(workspace)
    from tasks.pruning.join import join as join_run

    done = join_run(ws, wait)
    if as_json:
        print_json({"stages": done})
    else:
        print(f"The run is over. This machine worked on: {', '.join(done)}")
