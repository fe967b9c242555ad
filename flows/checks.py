"""What can be refused is refused before any work, and before `-S` writes params.yaml."""

from collections.abc import Sequence

from dass.errors import InputError
from flows.runners import check_runner
from tasks.evaluation.task_check import check_tasks
from tasks.notify import check_notify
from tasks.pruning.fits import check_model_fits
from tasks.pruning.nodes import check_endpoint
from tasks.registry.readiness import check_ready
from tasks.sweep.search import Listed, search_of
from tasks.sweep.space import Space
from tasks.versioning.experiments import check_experiments
from tasks.versioning.remote import check_remotes
from tasks.workspace.devices import check_device
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Sweep
from tasks.workspace.small_files import check_pipeline_files


def check_start(ws: Workspace, settings: Settings) -> None:
    """Ask all that a run needs later: files that DVC can read, device, where nodes meet, a model the plan can prune,
    tasks, a registry, git and DVC remotes where they are wanted.

    Raises:
        InputError: one of them is not to be had.
        InfrastructureError: MLflow or a remote does not answer.
    """
    check_pipeline_files(ws)
    check_device(settings.engine.device)
    check_endpoint(settings.engine)
    check_model_fits(ws, settings)
    check_tasks(ws, settings)
    check_ready(ws, settings)
    check_experiments(ws, settings)
    check_notify(settings.notify)
    check_remotes(ws, settings.register_.remotes)


def check_sweep(ws: Workspace, changes: Sequence[str]) -> Sweep:
    """Ask all that a sweep needs later, of every point that is known: section `sweep` with what was changed.

    Args:
        ws: where.
        changes: `section.key=values`: what is swept over, and what all points have.

    Raises:
        InputError: a point cannot be used (it is named), there are too many, or none could start.
    """
    check_pipeline_files(ws)
    space = Space.read(ws, changes)
    search = search_of(space)
    points = search.points if isinstance(search, Listed) else [space.point(1, space.first)]
    for point in points:
        try:
            check_device(point.settings.engine.device)
            check_model_fits(ws, point.settings)
            check_tasks(ws, point.settings)
        except InputError as error:
            raise InputError(f"{point.told}: {error}") from None
    check_ready(ws, points[0].settings)
    check_runner(space.asked)
    return space.asked
