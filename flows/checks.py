"""What can be refused is refused before any work, and before `-S` writes params.yaml."""

from tasks.evaluation.task_check import check_tasks
from tasks.pruning.fits import check_model_fits
from tasks.registry.readiness import check_ready
from tasks.versioning.experiments import check_experiments
from tasks.workspace.devices import check_device
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


def check_start(ws: Workspace, settings: Settings) -> None:
    """Ask all that a run needs later: device, a model the plan can prune, tasks, a registry, git where it is wanted.

    Raises:
        InputError: one of them is not to be had.
    """
    check_device(settings.engine.device)
    check_model_fits(ws, settings)
    check_tasks(ws, settings)
    check_ready(ws, settings)
    check_experiments(ws, settings)
