"""The real models of the benchmarks: fetched and calibrated as `dass run` does it, once."""

from pathlib import Path

from tasks.base import fetch_base
from tasks.calibration import cache_windows
from tasks.pins import refresh_pins
from tasks.settings import load_settings
from tasks.workspace import Workspace


def prepare_base(params: Path, folder: Path) -> Workspace:
    """Base checkpoint and calibration windows of a params.yaml in `folder`; what is there stays."""
    workspace, settings = Workspace(folder), load_settings(params)
    folder.mkdir(parents=True, exist_ok=True)
    refresh_pins(workspace, settings)
    if not (workspace.base / "source.json").exists():
        fetch_base(workspace, settings)
    cache_windows(workspace, settings)
    return workspace
