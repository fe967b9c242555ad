"""The command that tries many settings at once: sweep."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.log import log_of_run
from flows.cli.options import JsonOption, WorkspaceOption, open_workspace
from flows.cli.output import print_json, show_table, tell
from flows.exit_status import DONE, FAILED


@app.command()
def sweep(
    workspace: WorkspaceOption = Path(),
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="SECTION.KEY=VALUES",
            help="Values to sweep over, with commas between or as a YAML list; one value holds for every point. Also "
            "settings of the sweep itself (sweep.search=random). params.yaml stays as it is.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Prune and measure with many settings: a grid, a random draw, or a search by Optuna.

    Every point is a run in MLflow below one for the sweep, with its masks. A sweep that was stopped goes on where it
    was. Points with prune.propagation=dense share one pass through the dense model. What to do with the best:
    dass run --from-sweep SWEEP POINT.

        dass sweep -S prune.sparsity=0.3,0.5,0.7 -S prune.method=dass,wanda
        dass sweep -S prune.pattern=2:4,4:8 -S prune.sparsity=null -S prune.propagation=dense
    """
    ws = open_workspace(workspace)
    from flows.checks import check_sweep
    from flows.prefect_api import prefect_server
    from flows.swept_before import swept_before
    from tasks.workspace.lock import workspace_lock
    from tasks.workspace.progress import working

    asked = changes or []
    with workspace_lock(ws):
        swept = swept_before(ws, asked)
        if swept is None:
            checked = check_sweep(ws, asked)
            with log_of_run(ws), ExitStack() as until_done:
                with working("Starting Prefect"):
                    until_done.enter_context(prefect_server(ws, meanwhile=_import_flows))
                from flows.runners import runner_of
                from flows.sweep import sweep as sweep_flow

                swept = sweep_flow.with_options(task_runner=runner_of(checked))(str(ws.root), asked)
    if as_json:
        print_json(swept.as_json())
    else:
        show_table(swept.table())
        tell(f"sweep {swept.name}: {swept.told}. In MLflow: run {swept.mlflow_run} of experiment {swept.experiment}")
        tell(f"{ws.sweeps / swept.name}: the page sweep.html, and every number in figures.parquet")
        if swept.best:
            tell(f"One of them as a version of its own: dass run --from-sweep {swept.name} {swept.best[0]}")
    return FAILED if swept.all_failed else DONE


def _import_flows() -> None:
    import flows.sweep  # noqa: F401  (it takes seconds)
