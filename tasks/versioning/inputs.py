"""What a stage reads, and whether it is still what the run read when it began."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.versioning.repository import name_of
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from dvc.stage import PipelineStage


class InputsChangedError(RuntimeError):
    """What a stage reads changed while it worked, so its result was not recorded."""


@dataclass(frozen=True)
class Started:
    """What a run read when it began: the settings, and the value of every input that no stage makes.

    Attributes:
        settings: params.yaml, checked.
        inputs: stage -> dependency -> DVC's value for it (parameter values, or a digest).
    """

    settings: Settings
    inputs: dict[str, dict[str, Any]]


def compare(started: Started, stage: "PipelineStage", value: Callable[[Any], Any]) -> None:
    """Compare a stage's inputs with what the run read when it began.

    Raises:
        InputsChangedError: they differ.
    """
    before = started.inputs[stage.name]
    now = {name_of(dep): value(dep) for dep in stage.deps if name_of(dep) in before}
    changed = [_named(name, _different(before[name], now[name])) for name in now if before[name] != now[name]]
    if changed:
        raise changed_while(stage.name, ", ".join(changed))


def check_inputs(stage: "PipelineStage") -> None:
    """Compare the inputs as they are with those saved in `stage`.

    Raises:
        InputsChangedError: they differ.
    """
    changed = [_named(name_of(dep), what) for dep in stage.deps for what in dep.status().values()]
    if changed:
        raise changed_while(stage.name, ", ".join(changed))


def changed_while(stage: str, what: str) -> InputsChangedError:
    """The error that says what became different beneath a stage."""
    return InputsChangedError(
        f"{what} changed while stage {stage} worked with the old value: its result was not recorded. Run again."
    )


def value_of(dependency: Any) -> Any:
    """DVC's value for an input; None when there is none (the stage itself then says what is missing)."""
    return dependency.get_hash().value if dependency.exists else None


def _different(before: Any, now: Any) -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        return [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return None


def _named(path: str, what: Any) -> str:
    keys = list(what) if isinstance(what, (dict, list)) else []
    return f"{path} ({', '.join(keys)})" if keys else path
