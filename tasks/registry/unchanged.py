"""Whether artifacts/ still is what the stages wrote: asked before any of it is registered.

Every file is compared with what another one says of it: masks, updates and statistics with the manifest, the pruned
weights with dass.json, and every file beside them with what pruning the base writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.masks.beside import differing_keys, prove_beside
from dass.masks.mask_file import MaskFile
from dass.masks.proof import ProofError
from dass.masks.pruned_record import RECORD, read_record
from dass.masks.updates import named_updates
from dass.model.checkpoint_folder import BASE_CARD, CARD, contents
from tasks.pruning.recovered import RECOVERY, check_recovery_fits
from tasks.pruning.run import MANIFEST, MASKS, STATISTICS, UPDATES, read_stage
from tasks.workspace.digests import known_digests
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


def check_unchanged(ws: Workspace, settings: Settings) -> None:
    """Refuse to register what was changed since a stage wrote it. No tensor is compared, and no file is read that is as
    it was when it was hashed or written last (`tasks.workspace.digests`).

    Args:
        ws: every stage has run.
        settings: what it ran with.

    Raises:
        InputError: one line: the first file that was changed, how, and what makes it again.
    """
    manifest_file = ws.masks / MANIFEST
    manifest, source = read_stage(manifest_file, "prune"), read_stage(ws.base / "source.json", "sources")
    for key, expected in (
        ("base", source),
        ("calibration", read_stage(ws.calibration / "calibration.json", "calibration")),
        ("settings", {"prune": settings.prune.plan.named}),
    ):
        for told in differing_keys(expected, manifest.get(key), key):
            raise _changed(manifest_file, told, "prune")
    _check_base(ws, source["files"])
    _check_masks(ws, manifest)
    _check_pruned(ws, manifest)
    _check_answers(ws)


def _check_answers(ws: Workspace) -> None:
    named = read_stage(ws.metrics / "tasks.json", "tasks").get("answers")
    answers = ws.answers / "answers.parquet"
    if named is not None and (not answers.is_file() or known_digests(answers).sha256 != named["sha256"]):
        raise _changed(answers, "it is not the file that metrics/tasks.json names", "tasks")


def _check_base(ws: Workspace, files: Mapping[str, str]) -> None:
    """Compare what the pruned checkpoint's other files follow from. The base's weights are left to the proof."""
    for name in [*contents(ws.base).beside, CARD, BASE_CARD]:
        path = ws.base / name
        if path.is_file() and known_digests(path).sha256 != files.get(name):
            raise _changed(path, "it is not the file that source.json names", "sources")


def _check_masks(ws: Workspace, manifest: Mapping[str, Any]) -> None:
    masks, updates = ws.masks / MASKS, ws.masks / UPDATES
    if MaskFile(masks).digest != manifest["masks"]["digest"]:
        raise _changed(masks, "these are not the masks that manifest.json names", "prune")
    recovery, recovered = read_stage(ws.recovered / RECOVERY, "recover"), ws.recovered / UPDATES
    for folder, said, record, stage in (
        (updates, manifest["updates"], MANIFEST, "prune"),
        (recovered, recovery.get("updates"), RECOVERY, "recover"),
    ):
        try:
            named_updates(MaskFile(masks), [(folder, said)])
        except InputError:
            raise _changed(folder, f"these are not the new values that {record} names", stage) from None
    check_recovery_fits(recovery, manifest, ws.recovered)
    statistics = ws.masks / STATISTICS
    if known_digests(statistics).sha256 != manifest["statistics"]["sha256"]:
        raise _changed(statistics, "it is not the file that manifest.json names", "prune")


def _check_pruned(ws: Workspace, manifest: Mapping[str, Any]) -> None:
    record = read_record(ws.pruned)
    if record is None:
        raise _changed(ws.pruned / RECORD, "it is missing or damaged", "materialize")
    present = {name: ws.pruned / name for name in contents(ws.base).weights if (ws.pruned / name).is_file()}
    weights = {name: known_digests(path).sha256 for name, path in present.items()}
    for name, sha256 in weights.items():
        if sha256 != record["files"].get(name):
            raise _changed(ws.pruned / name, f"it is not the file that {RECORD} names", "materialize")
    how = manifest["settings"]["prune"], manifest["base"]["pruned"]
    try:
        prove_beside(ws.base, ws.pruned, weights, *how)
    except ProofError as error:
        raise _changed(ws.pruned, f"{error}".rstrip("."), "materialize", "/") from None


def _changed(path: Path, how: str, stage: str, between: str = ": ") -> InputError:
    return InputError(
        f"{path}{between}{how}. It was changed since it was made, and nothing was registered. "
        f"Make it again with dvc repro -s -f {stage}, then run: dass run"
    )
