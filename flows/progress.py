"""How far long work is, as a progress artifact in Prefect's UI, with what is left of it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

if TYPE_CHECKING:
    from uuid import UUID

_FIGURES = {"loss": "loss", "held_back": "held back", "relative_error": "relative output error"}


def progress_artifact(total: int, key: str, unit: str) -> Callable[[int, dict[str, Any]], None]:
    """Give a function that is told how much is done, and figures of it; it shows every hundredth of the way, and each
    look at what was held back.

    Args:
        total: what there is to do.
        key: the artifact's, lower-case.
        unit: what is counted, in the singular.
    """
    made: UUID | None = None
    shown, first, began = -1, 0, 0.0

    def note(done: int, figures: dict[str, Any]) -> None:
        nonlocal made, shown, first, began
        share = 100 * done // total
        if made is None:  # what an earlier run did took no time here
            first, began = done, time.monotonic()
        elif share == shown and "held_back" not in figures:
            return
        shown = share
        told = [f"{unit} {done} of {total}"]
        told += [f"{name} {figures[key]:.4f}" for key, name in _FIGURES.items() if figures.get(key) is not None]
        if first < done < total:
            left = (time.monotonic() - began) * (total - done) / (done - first)
            told.append(f"about {duration(left)} left")
        described = ", ".join(told)
        if made is None:
            made = create_progress_artifact(float(share), key=key, description=described)  # type: ignore[assignment]
        else:
            update_progress_artifact(made, float(share), description=described)

    return note


def duration(seconds: float) -> str:
    """A length of time in its two largest units that are not zero."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
