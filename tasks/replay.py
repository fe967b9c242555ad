"""`dass verify --replay`: prune again from what DVC kept, in an empty folder, and compare the masks."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dass.engine import ENGINE_VERSION
from dass.errors import InputError
from dass.files import read_json
from dass.masks import MaskFile
from dass.proof import ProofError
from tasks.pruning import MANIFEST, MASKS, prune, updates_of
from tasks.settings import Settings, validate_settings
from tasks.version_folder import RECORDS
from tasks.dvc_data import pull
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def replayed(ws: Workspace, folder: Path, made: "ModelVersion | None") -> str:
    """Pull base and calibration windows into an empty folder, prune with the version's settings, compare digests.

    Args:
        ws: its DVC cache and remote are asked.
        folder: the version's.
        made: the version, whose tags name the data.

    Raises:
        ProofError: other masks came out.
        InputError: the data cannot be pulled, or this engine is another than the one that made the version.
    """
    if made is None:
        raise InputError("nothing says where its base and calibration data are: it is no registered version.")
    recorded = read_json(folder / RECORDS / MANIFEST)
    engine = recorded["engine"]
    if engine["version"] != ENGINE_VERSION:
        raise InputError(
            f"engine version {engine['version']} made it, and this is {ENGINE_VERSION}: "
            f"check out commit {made.tags['git_commit']} and replay there."
        )
    with TemporaryDirectory(prefix="dass-replay-") as scratch:
        empty = Workspace(Path(scratch).resolve())
        pull(ws, {path: made.tags[f"dvc.{path}"] for path in ("artifacts/base", "artifacts/calibration")}, empty.root)
        prune(empty, _settings(folder, engine))
        again = MaskFile(empty.masks / MASKS).digest
        changed = updates_of(empty.masks)
        if again != recorded["masks"]["digest"]:
            raise ProofError(
                f"pruned again, the masks are {again[:16]}, and the manifest says "
                f"{recorded['masks']['digest'][:16]}{_differences(recorded, read_json(empty.masks / MANIFEST))}."
            )
        if recorded["updates"] and changed.digest != recorded["updates"]["digest"]:
            raise ProofError("pruned again, the masks are the same and the new values of kept weights are not.")
    return f"pruned again from DVC's base and calibration windows: the same masks, {again[:16]}"


def _settings(folder: Path, engine: dict[str, Any]) -> Settings:
    """The version's settings, computed as it was: same device kind, type and batches."""
    values = read_json(folder / RECORDS / "settings.json")
    values["engine"] |= {
        "device": engine["device"],
        "dtype": engine["dtype"],
        "batch_tokens": engine["batch_tokens"],
        "processes": 1,
    }
    return validate_settings(values, "the version's settings.json")


def _differences(recorded: dict[str, Any], now: dict[str, Any]) -> str:
    """What else is not as it was, which may be why."""
    other = [
        f"{name} {then} -> {now['versions'].get(name)}"
        for name, then in recorded["versions"].items()
        if now["versions"].get(name) != then
    ]
    return f" (computed with {', '.join(other)})" if other else ""
