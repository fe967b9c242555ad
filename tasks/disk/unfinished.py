"""What a workspace has begun and not ended: it may be gone on with, so nothing that it needs is freed."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.files import read_json
from tasks.workspace.folder import Workspace

_LAYER, _STATE = "layer_*.safetensors", "state_*.safetensors"


@dataclass(frozen=True)
class Begun:
    """A folder of work that did not come to its end, or whose result is not registered yet.

    Attributes:
        what: in words.
        folder: where it lies.
    """

    what: str
    folder: Path


def begun_work(ws: Workspace, done: Collection[str]) -> list[Begun]:
    """Layers, states and batches that a run may go on behind.

    Args:
        ws: whose.
        done: fingerprints of what is registered: their work has come to its end.
    """
    found = [Begun(_told(folder), folder) for folder in _folders(ws.private / "work") if folder.name not in done]
    batches = [Begun("answers to zero-shot tasks", ws.batches)] if any(ws.batches.glob("*")) else []
    return [*found, *batches]


def begun_points(ws: Workspace) -> list[Begun]:
    """Folders of points of sweeps that were not finished: neither their record nor their masks are there."""
    found = []
    for folder in _folders(ws.sweeps / "work"):
        is_done = (ws.sweeps / "points" / f"{folder.name}.json").is_file() or (
            ws.sweeps / "masks" / folder.name / "manifest.json"
        ).is_file()
        if not is_done and any(path.is_file() for path in folder.rglob("*")):
            found.append(Begun(f"a sweep's point, {folder.name[:12]}", folder))
    return found


def fingerprints_here(ws: Workspace) -> set[str]:
    """Of the pruning and the recovery whose results lie in artifacts/, as far as they can be read."""
    records = ws.masks / "manifest.json", ws.recovered / "recovery.json"
    return {found for path in records if (found := _fingerprint(path)) is not None}


def _fingerprint(path: Path) -> str | None:
    try:
        found: Any = read_json(path)["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(found)


def layers_of(folder: Path) -> int:
    """How many layers a pruning has finished."""
    return len(list(folder.glob(_LAYER)))


def _folders(parent: Path) -> list[Path]:
    return [path for path in sorted(parent.glob("*")) if path.is_dir() and not path.name.startswith(".")]


def _told(folder: Path) -> str:
    layers = layers_of(folder)
    if layers:
        return f"pruning {folder.name[:12]}, {layers} layers finished"
    if any(folder.glob(_STATE)) or (folder / "inputs.json").is_file():
        return f"recovery {folder.name[:12]}, {_steps(folder / 'steps.jsonl')} steps told"
    return f"work {folder.name[:12]}"


def _steps(file: Path) -> int:
    try:
        return int(json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
