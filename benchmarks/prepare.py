"""The real models of the benchmarks: fetched and calibrated as `dass run` does it, once."""

import shutil
import subprocess
import sys
from pathlib import Path

from tasks.calibration import cache_windows
from tasks.sources.base import fetch_base
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings


def prepare_base(params: Path, folder: Path) -> Workspace:
    """Base checkpoint and calibration windows of a params.yaml in `folder`; what is there stays."""
    workspace, settings = Workspace(folder), load_settings(params)
    folder.mkdir(parents=True, exist_ok=True)
    refresh_pins(workspace, settings)
    if not (workspace.base / "source.json").exists():
        fetch_base(workspace, settings)
    cache_windows(workspace, settings)
    return workspace


def workspace_with(params: Path, folder: Path) -> Path:
    """A workspace with these settings; one that is there keeps its own."""
    if not (folder / "dvc.yaml").exists():
        subprocess.run([sys.executable, "-P", "-m", "flows", "init", str(folder)], check=True)
        shutil.copyfile(params, folder / "params.yaml")
    return folder
