"""How far long work is, as a progress artifact in Prefect's UI, with what is left of it."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.heard import if_heard
from tasks.workspace.log_format import is_json, log_attributes
from tasks.workspace.progress import TimeLeft

if TYPE_CHECKING:
    from uuid import UUID

    from dass.engine.layer_report import LayerReport

logger = logging.getLogger("dass")

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
    shown, time_left = -1, TimeLeft(total)

    @if_heard
    def note(done: int, figures: dict[str, Any]) -> None:
        nonlocal made, shown
        share = 100 * done // total
        if share == shown and "held_back" not in figures:
            return
        shown = share
        told = [f"{unit} {done} of {total}"]
        told += [f"{name} {figures[key]:.4f}" for key, name in _FIGURES.items() if figures.get(key) is not None]
        if left := time_left.told(done):
            told.append(left)
        described = ", ".join(told)
        if made is None:
            made = create_progress_artifact(float(share), key=key, description=described)  # type: ignore[assignment]
        else:
            update_progress_artifact(made, float(share), description=described)

    return note


def log_layer(index: int, total: int, report: "LayerReport") -> None:
    """A record of each pruned layer for a collector; people have the bar, and Prefect's log."""
    if is_json():
        figures = {"layer.seconds": report.seconds, "layer.relative_error": report.relative_error}
        with log_attributes({"layer": index, **figures}):
            logger.info("layer %d of %d is pruned", index + 1, total)
