"""How far training is, as a progress artifact in Prefect's UI."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

if TYPE_CHECKING:
    from uuid import UUID


def progress_artifact(steps: int) -> Callable[[dict[str, Any]], None]:
    """Give a function that is told each step's figures, and shows every hundredth of the way and each look."""
    made: UUID | None = None
    shown = -1

    def note(entry: dict[str, Any]) -> None:
        nonlocal made, shown
        share = 100 * entry["step"] // steps
        if share == shown and "held_back" not in entry:
            return
        shown = share
        figures = (("loss", "loss"), ("held_back", "held back"))
        told = ", ".join(f"{name} {entry[key]:.4f}" for key, name in figures if key in entry)
        if made is None:
            made = create_progress_artifact(float(share), key="recover", description=told)  # type: ignore[assignment]
        else:
            update_progress_artifact(made, float(share), description=told)

    return note
