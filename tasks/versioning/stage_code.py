"""A stage and its code: where dvc.yaml names code files, or dass.lock.json pins a digest, it must be what runs here."""

from typing import TYPE_CHECKING

from dass.errors import InputError
from tasks.versioning.code import INSTALLED, STAGE_MODULES, code_digest
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from dvc.stage import PipelineStage


def check_code(ws: Workspace, stage: "PipelineStage") -> None:
    """Where dvc.yaml depends on code files, they must be the code that runs.

    Raises:
        InputError: the workspace holds other code than the one that runs.
    """
    if stage.name not in STAGE_MODULES or _code_is_pinned(stage) or ws.root == INSTALLED:
        return
    if code_digest(stage.name, ws.root) != code_digest(stage.name):
        raise InputError(
            f"{ws.root}/dvc.yaml depends on the code beside it, but the code that runs is in {INSTALLED}. "
            f"Run there: python -m flows, or make a workspace of its own with: dass init"
        )


def check_pinned_code(stage: "PipelineStage") -> None:
    """Where dass.lock.json pins a digest of the stage's code, it must be that of the code that runs.

    Raises:
        InputError: it is not.
    """
    for dep in stage.params:
        key = f"code.{stage.name}"
        if key in dep.params and dep.read_params().get(key) != code_digest(stage.name):
            raise InputError(f"{dep} was written by another version of dass. Run: dass pin")


def stages_with_pinned_code(stages: list["PipelineStage"]) -> list[str]:
    """Names of the stages whose code dass.lock.json pins, in order."""
    return [stage.name for stage in stages if _code_is_pinned(stage)]


def reads(stage: "PipelineStage", key: str) -> bool:
    """Whether a stage depends on a key of some parameter file."""
    return any(key in dep.params for dep in stage.params)


def _code_is_pinned(stage: "PipelineStage") -> bool:
    return reads(stage, f"code.{stage.name}")
