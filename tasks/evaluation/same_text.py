"""Whether a test text is the very text that is calibrated on, known from dass.lock.json before any work."""

import logging
from typing import Any

from tasks.sources.pinned import by_role, read_pins, setting_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

logger = logging.getLogger("dass")


def tell_same_text(ws: Workspace, settings: Settings) -> None:
    """Say in one line which test texts are what is calibrated on. Call when the sources are pinned."""
    if same := same_as_calibration(ws, settings):
        logger.warning(
            "%s %s calibrated on too: their overlap is 100 %%, and promote.max_overlap refuses that. "
            "Take another text.",
            " and ".join(same),
            "is" if len(same) == 1 else "are",
        )


def same_as_calibration(ws: Workspace, settings: Settings) -> list[str]:
    """The settings that name the very text which is calibrated on, before anything was made of it."""
    pins = by_role(read_pins(ws)["sources"])
    texts = {"evaluation": settings.sources.evaluation}
    texts |= {f"texts.{name}": source for name, source in settings.evaluate.texts.items()}
    calibration: dict[str, Source] = {
        f"calibration_texts.{name}": source for name, source in settings.calibration.texts.items()
    }
    if settings.calibration.source == "text":
        calibration["calibration"] = settings.sources.calibration
    calibrated_on = {_what_is_read(pins, role, source) for role, source in calibration.items()}
    return [setting_of(role) for role, source in texts.items() if _what_is_read(pins, role, source) in calibrated_on]


def _what_is_read(pins: dict[str, dict[str, Any]], role: str, source: Source) -> tuple[Any, ...]:
    return (source.column, source.split, source.subset, source.data_files, *_bytes(pins, role))


def _bytes(pins: dict[str, dict[str, Any]], role: str) -> tuple[Any, ...]:
    pin = pins[role]
    return (pin["sha256"],) if pin["sha256"] else (pin["uri"], pin["revision"])
