"""A sweep that is finished already: its answer, without Prefect, and without loading torch, MLflow or a cluster."""

from collections.abc import Sequence

from dass.errors import InputError
from dass.files import digest_of
from flows.once import settings_once
from flows.overrides import parse_changes
from flows.stages import wanted_stages
from tasks.registry.attempts import ENDED
from tasks.registry.clearing import store_named
from tasks.registry.tracking import TrackingError, reading
from tasks.sweep.records import SWEEP, group_of
from tasks.sweep.space import Point, Space
from tasks.sweep.swept import Swept, kept_sweep
from tasks.versioning.code import STAGE_MODULES, code_digest
from tasks.versioning.inputs import Started
from tasks.versioning.stages import start_run
from tasks.workspace.folder import Workspace

PREPARED = "baseline"
"""The stage behind which points part."""


def swept_before(ws: Workspace, changes: Sequence[str]) -> Swept | None:
    """What a sweep would end with that finds every point finished. Call inside `workspace_lock`.

    Args:
        ws: where.
        changes: as `flows.sweep.sweep`.

    Returns:
        Its end; None: there is something to do.

    Raises:
        InputError: as `Space.read`; a source holds other bytes than were pinned.
    """
    space = Space.read(ws, changes)
    kept = kept_sweep(ws, space)
    if kept is None or kept.store != store_named(ws):
        return None
    points = [point for point, _ in kept.swept.done]
    if len(points) > space.asked.max_points or points[0].settings.register_.experiment != kept.swept.experiment:
        return None
    groups = {group_of(point.settings): point for point in reversed(points)}
    if any(kept.made_from.get(group) != _made_from(ws, point) for group, point in groups.items()):
        return None
    if not _is_in_mlflow(ws, kept.swept.mlflow_run):
        return None
    (ws.sweeps / kept.swept.name / SWEEP).touch()  # `--from-sweep last` is this one
    return kept.swept


def made_from(started: Started) -> str:
    """Digest of what the base, calibration and dense evaluation of a run are made from, and of a point's code."""
    inputs = {name: started.inputs[name] for name in wanted_stages(PREPARED)}
    return digest_of([inputs, {stage: code_digest(stage) for stage in STAGE_MODULES}])


def _made_from(ws: Workspace, point: Point) -> str:
    with settings_once(ws, parse_changes(point.changes, "--with")) as once:
        return made_from(start_run(once))


def _is_in_mlflow(ws: Workspace, run_id: str) -> bool:
    """Whether the sweep's run is there, and ended as a sweep does that was not stopped."""
    try:
        with reading(ws) as client:
            run = client.get_run(run_id)
    except (TrackingError, InputError):  # whoever goes on says what is wrong with it
        return False
    ended = run.info.status in ("FINISHED", "FAILED") and ENDED not in run.data.tags
    return ended and run.info.lifecycle_stage == "active"
