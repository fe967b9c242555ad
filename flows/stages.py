"""The stages: one name in dvc.yaml, on the command line and here, and the function that does the work."""

import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dass.errors import InputError
from tasks.versioning.code import STAGE_MODULES
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from tasks.workspace.settings import Settings

StageName = Literal[
    "sources", "calibration", "baseline", "prune", "recover", "materialize", "evaluate", "tasks", "plots"
]
"""As a parameter in Prefect's UI: one of these is picked there."""


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml. Its function is imported when it is first wanted: torch takes seconds."""

    name: str
    function: str
    help: str

    def work(self, ws: Workspace, settings: "Settings") -> object:
        """Do the work, as a plain function: no Prefect, no DVC."""
        function: Callable[[Workspace, Settings], object] = getattr(
            importlib.import_module(STAGE_MODULES[self.name]), self.function
        )
        return function(ws, settings)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("sources", "fetch_base", "Fetch the model into artifacts/base."),
        Stage("calibration", "cache_windows", "Draw the calibration windows into artifacts/calibration."),
        Stage("baseline", "evaluate_dense", "Measure the dense model into artifacts/evaluation."),
        Stage("prune", "prune", "Prune layer by layer into artifacts/masks."),
        Stage("recover", "recover", "Train artifacts/masks times artifacts/base into artifacts/recovered."),
        Stage("materialize", "materialize", "Write base times masks into artifacts/pruned."),
        Stage("evaluate", "evaluate_pruned", "Measure artifacts/pruned into metrics/evaluation.json."),
        Stage("tasks", "evaluate_tasks", "Ask both models the zero-shot tasks, into metrics/tasks.json."),
        Stage("plots", "draw_plots", "Draw plots/layers.png and plots/norms.png."),
    )
}


_WITHOUT_DEVICE = ("sources", "materialize", "plots")


def wanted_stages(until: str | None) -> list[str]:
    """The stages up to one, in order; None: all.

    Raises:
        InputError: no stage is called that.
    """
    names = list(STAGES)
    if until is None:
        return names
    if until not in names:
        raise InputError(f"--until is {until!r}: expected one of {', '.join(names)}.")
    return names[: names.index(until) + 1]


def run_stage(ws: Workspace, name: str) -> None:
    """What `dvc repro` calls: one stage's work, which fails when its inputs change meanwhile.

    Under torchrun rank 0 holds the workspace for all.

    Raises:
        InputError: bad settings, or another run holds the workspace or the GPU.
        InputsChangedError: an input changed while the stage worked.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        from tasks.workspace.settings import load_settings

        STAGES[name].work(ws, load_settings(ws.params))
        return
    from tasks.versioning.stages import watched_inputs
    from tasks.workspace.gpus import gpus_held
    from tasks.workspace.lock import workspace_lock

    with ExitStack() as until_done:
        until_done.enter_context(workspace_lock(ws))
        settings = until_done.enter_context(watched_inputs(ws, name))
        if name not in _WITHOUT_DEVICE:
            until_done.enter_context(gpus_held(ws, settings.engine, f"dass {name}"))
        STAGES[name].work(ws, settings)
