"""Whether a test text is the very text that is calibrated on, known from dass.lock.json before any work."""

import logging
from typing import Any

from tasks.sources.pinned import by_role, read_pins, setting_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

logger = logging.getLogger("dass")


def tell_same_text(ws: Workspace, settings: Settings) -> None:
    """Say in one line which test texts are what is calibrated on. Call when the sources are pinned."""
    if same := same_as_calibration(ws, settings):
        logger.warning(
            "%s %s the text of sources.calibration: their overlap is 100 %%, and promote.max_overlap refuses that. "
            "Take another text.",
            " and ".join(same),
            "is" if len(same) == 1 else "are",
        )


def same_as_calibration(ws: Workspace, settings: Settings) -> list[str]:
    """The settings that name the very text which is calibrated on, before anything was made of it."""
    pins = by_role(read_pins(ws)["sources"])
    texts = {"evaluation": settings.sources.evaluation}
    texts |= {f"texts.{name}": source for name, source in settings.evaluate.texts.items()}
    calibration = settings.sources.calibration
    read = {"column", "split", "subset", "data_files"}
    return [
        setting_of(role)
        for role, source in texts.items()
        if all(getattr(source, each) == getattr(calibration, each) for each in read)
        and _bytes(pins, role) == _bytes(pins, "calibration")
    ]


def _bytes(pins: dict[str, dict[str, Any]], role: str) -> tuple[Any, ...]:
    pin = pins[role]
    return (pin["sha256"],) if pin["sha256"] else (pin["uri"], pin["revision"])
