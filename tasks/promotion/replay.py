"""`dass verify --replay`: prune and train again from what DVC kept, in an empty folder; compare masks and values."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

from safetensors.torch import load_file

from dass.engine.version import ENGINE_VERSION
from dass.errors import UnavailableError
from dass.files import read_json, scratch_folder
from dass.masks.proof import ProofError
from tasks.promotion.replay_data import BASE, CALIBRATION, DRAWN
from tasks.pruning import run, stages
from tasks.pruning.recovered import RECOVERY
from tasks.recovery import stages as recovery_stages
from tasks.registry.version_folder import MANIFEST, SETTINGS, VERSION, recovery_of
from tasks.sources.tokens import digest_of_ids
from tasks.versioning.dvc_data import pull
from tasks.workspace.folder import Workspace
from tasks.workspace.gpus import gpus_held
from tasks.workspace.settings import Settings, validate_settings


def replayed(ws: Workspace, folder: Path) -> str:
    """Pull base and calibration windows into an empty folder, prune with the version's settings, compare digests.

    Args:
        ws: its DVC cache and remote are asked.
        folder: the version's, whose version.json names the data.

    Raises:
        ProofError: other masks came out.
        UnavailableError: the data cannot be pulled, or this engine is another than the one that made the version.
        InputError: another run has the GPU.
    """
    recorded, version = read_json(folder / MANIFEST), read_json(folder / VERSION)
    engine = recorded["engine"]
    if engine["version"] != ENGINE_VERSION:
        raise UnavailableError(
            f"engine version {engine['version']} made it, and this is {ENGINE_VERSION}: "
            f"check out commit {version['git']['commit']} and replay there."
        )
    settings = _settings(folder, engine)
    with gpus_held(ws, settings.engine, "a replay"), scratch_folder(Path(gettempdir()), "dass-replay") as scratch:
        empty = Workspace(scratch.resolve())
        pull(ws, {path: version["dvc"][path] for path in (BASE, CALIBRATION)}, empty.root)
        stages.prune(empty, settings)
        again, expected = read_json(empty.masks / run.MANIFEST), recorded["masks"]["digest"]
        recovered = _recovered(ws, folder, version, empty) if again["masks"]["digest"] == expected else None
    if again["masks"]["digest"] != expected:
        raise ProofError(
            f"pruned again, the masks are {again['masks']['digest'][:16]}, and the manifest says {expected[:16]}"
            f"{_differences(recorded, again)}."
        )
    if again["updates"] != recorded["updates"]:
        raise ProofError("pruned again, the masks are the same, and the new values of kept weights are not.")
    told = f"pruned again from DVC's base and calibration windows: the same masks, {expected[:16]}"
    if recovered is None:
        return told
    values = recovery_of(folder)["updates"]
    if recovered["updates"] != values:
        raise ProofError(f"pruned again, the masks are the same; trained again, the values are not{_loss(recovered)}.")
    return f"{told}; trained again: the same values, {values['digest'][:16] if values else 'none'}"


def _recovered(ws: Workspace, folder: Path, version: dict[str, Any], empty: Workspace) -> dict[str, Any] | None:
    """Train again what was pruned again, on as many processes; the record of it. None: the version was not trained."""
    record = recovery_of(folder)
    if not record["trained"]:
        return None
    from tasks.recovery.run import VERSION as TRAINED_BY

    engine, windows = record["engine"], None
    if engine["version"] != TRAINED_BY:
        raise UnavailableError(
            f"recovery version {engine['version']} trained it, and this is {TRAINED_BY}: check out commit "
            f"{version['git']['commit']} and replay there."
        )
    if record["text"]["drawn"]:
        kept = Workspace(empty.root / "drawn")
        kept.root.mkdir()
        pull(ws, {DRAWN: version["dvc"][DRAWN]}, kept.root)
        windows = load_file(kept.recovered / "tokens.safetensors")["input_ids"]
        if digest_of_ids(windows) != record["text"]["digest"]:
            raise ProofError("the windows that DVC kept are not those that recovery.json names.")
    recovery_stages.recover(empty, _settings(folder, engine), windows=windows)
    again: dict[str, Any] = read_json(empty.recovered / RECOVERY)
    return again


def _loss(recovered: dict[str, Any]) -> str:
    held_back = recovered["held_back"]
    return "" if held_back is None else f" (held-back loss {held_back['stored']:.6f})"


def _settings(folder: Path, engine: dict[str, Any]) -> Settings:
    """The version's settings, computed as it was: the same kind of device, type and batches.

    Pruning gives the same masks with any number of processes; a record that names a number wants that one, all on this
    machine.
    """
    values = read_json(folder / SETTINGS)
    values["engine"] |= {"processes": 1, "nodes": 1} | {
        name: engine[name] for name in ("device", "dtype", "batch_tokens", "processes") if name in engine
    }
    return validate_settings(values, "the version's settings.json")


def _differences(recorded: dict[str, Any], now: dict[str, Any]) -> str:
    """What else is not as it was, which may be why."""
    versions = {name: (then, now["versions"].get(name)) for name, then in recorded["versions"].items()}
    other = [f"{name} {then} -> {here}" for name, (then, here) in versions.items() if here != then]
    return f" (computed with {', '.join(other)})" if other else ""
