"""What a replay asks DVC for: the same answer for whoever replays a version and for whoever frees what none needs."""

from typing import Any

BASE, CALIBRATION, DRAWN = "artifacts/base", "artifacts/calibration", "artifacts/recovered"


def data_of(version: dict[str, Any], recovery: dict[str, Any]) -> dict[str, str]:
    """Path -> DVC's digest of all that a version's replay asks for.

    Args:
        version: its version.json.
        recovery: its recovery.json, or that nothing was trained.
    """
    is_drawn = recovery["trained"] and recovery["text"]["drawn"]
    return {path: version["dvc"][path] for path in (BASE, CALIBRATION, *((DRAWN,) if is_drawn else ()))}
