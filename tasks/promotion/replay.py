"""`dass verify --replay`: prune again from what DVC kept, in an empty folder, and compare the masks."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

from dass.engine.pruner import ENGINE_VERSION
from dass.errors import UnavailableError
from dass.files import read_json, scratch_folder
from dass.masks.proof import ProofError
from tasks.pruning import run, stages
from tasks.registry.version_folder import MANIFEST, SETTINGS, VERSION
from tasks.versioning.dvc_data import pull
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, validate_settings

_DATA = ("artifacts/base", "artifacts/calibration")


def replayed(ws: Workspace, folder: Path) -> str:
    """Pull base and calibration windows into an empty folder, prune with the version's settings, compare digests.

    Args:
        ws: its DVC cache and remote are asked.
        folder: the version's, whose version.json names the data.

    Raises:
        ProofError: other masks came out.
        UnavailableError: the data cannot be pulled, or this engine is another than the one that made the version.
    """
    recorded, version = read_json(folder / MANIFEST), read_json(folder / VERSION)
    engine = recorded["engine"]
    if engine["version"] != ENGINE_VERSION:
        raise UnavailableError(
            f"engine version {engine['version']} made it, and this is {ENGINE_VERSION}: "
            f"check out commit {version['git']['commit']} and replay there."
        )
    with scratch_folder(Path(gettempdir()), "dass-replay") as scratch:
        empty = Workspace(scratch.resolve())
        pull(ws, {path: version["dvc"][path] for path in _DATA}, empty.root)
        stages.prune(empty, _settings(folder, engine))
        again, expected = read_json(empty.masks / run.MANIFEST), recorded["masks"]["digest"]
    if again["masks"]["digest"] != expected:
        raise ProofError(
            f"pruned again, the masks are {again['masks']['digest'][:16]}, and the manifest says {expected[:16]}"
            f"{_differences(recorded, again)}."
        )
    if again["updates"] != recorded["updates"]:
        raise ProofError("pruned again, the masks are the same, and the new values of kept weights are not.")
    return f"pruned again from DVC's base and calibration windows: the same masks, {expected[:16]}"


def _settings(folder: Path, engine: dict[str, Any]) -> Settings:
    """The version's settings, computed as it was: the same kind of device, type and batches."""
    values = read_json(folder / SETTINGS)
    values["engine"] |= {name: engine[name] for name in ("device", "dtype", "batch_tokens")} | {"processes": 1}
    return validate_settings(values, "the version's settings.json")


def _differences(recorded: dict[str, Any], now: dict[str, Any]) -> str:
    """What else is not as it was, which may be why."""
    versions = {name: (then, now["versions"].get(name)) for name, then in recorded["versions"].items()}
    other = [f"{name} {then} -> {here}" for name, (then, here) in versions.items() if here != then]
    return f" (computed with {', '.join(other)})" if other else ""
