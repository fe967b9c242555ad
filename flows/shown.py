"""What Prefect's UI shows of a run: a name and tags to find it by, and artifacts with its result."""

from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from dass.files import read_json
from flows.heard import if_heard
from flows.watch import VERSION_TAG
from tasks.registry.card import described, results, task_results
from tasks.registry.run_record import run_name
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from tasks.registry.registration import Registration


def name_flow_run(settings: Settings) -> None:
    """Call the flow's run after model, method and pattern, and tag it with them. Tags that it has stay."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run, prune = context.flow_run, settings.prune
    name = f"{settings.register_.model}: {run_name(settings)}"
    tags = {*run.tags, settings.register_.model, prune.method, prune.pattern}
    tags |= {each for each in (prune.layout, prune.update) if each not in ("paper", "none")}
    tags |= {"recover"} if settings.recover.steps else set()
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=name, tags=sorted(tags))
    run.name = name  # `prefect.runtime` answers with it


@if_heard
def tag_version(version: str) -> None:
    """Tag the flow's run with the version that it registered: to find it by, and for whoever keeps the schedule."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    with get_client(sync_client=True) as client:
        tags = client.read_flow_run(run.id).tags
        client.update_flow_run(run.id, tags=sorted({*tags, f"{VERSION_TAG}{version}"}))


@if_heard
def show_result(ws: Workspace, registered: "Registration") -> None:
    """Leave the result's table, and one with a row for each layer."""
    evaluation, tasks = (read_json(ws.metrics / name) for name in ("evaluation.json", "tasks.json"))
    manifest = read_json(ws.masks / "manifest.json")
    told = [
        f"**{described(manifest['settings']['prune'])}** of `{registered.model}`, version {registered.version}"
        + ("" if registered.created else " (was registered before)"),
        results(evaluation),
        *task_results(tasks),
    ]
    create_markdown_artifact("\n\n".join(told), key="result", description="What was made, and what it cost")
    create_table_artifact(_layers(ws, manifest), key="layers", description="Each pruned layer")


def _layers(ws: Workspace, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    from tasks.pruning.stages import seconds_per_layer  # here: torch takes seconds

    seconds = seconds_per_layer(ws)
    rows = []
    for layer in manifest["layers"]:
        runs = [name for name, able in layer["runs_2_4"].items() if able]
        row = {
            "layer": layer["layer"],
            **{f"sparsity of {name}": f"{share:.2%}" for name, share in layer["sparsity"].items()},
            "relative output error": _figure(layer["relative_error"]),
            "runs on a 2:4 kernel": ", ".join(runs) or "none",
        }
        if seconds is not None:
            row["seconds"] = f"{seconds[layer['layer']]:.1f}"
        rows.append(row)
    return rows


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
