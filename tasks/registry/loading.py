"""Loading a version as a transformers model, and writing its full checkpoint.

A version with a checkpoint is read as it lies. One with masks only becomes base × masks (× updates): the base is taken
from where it is, or fetched again, and every one of its files must have the digest that the manifest gives it.
"""

import logging
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, get_args

from dass.errors import InputError, UnavailableError
from dass.files import complete_folder, digest_of, read_json, scratch_folder, sha256_file
from dass.masks.mask_file import MaskFile, apply_to_checkpoint
from dass.masks.pruned_record import RECORD
from dass.masks.updates import Updates, named_updates
from dass.model.checkpoint import Checkpoint
from dass.model.checkpoint_folder import contents
from dass.model.config_bounds import check_config_bounds
from dass.outputs import check_empty, check_place
from tasks.pruning.recovered import check_recovery_fits
from tasks.registry.checked import checked_version
from tasks.registry.signing import refuse_links_and_pickles
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import (
    BOM,
    CARD,
    FORMAT,
    MANIFEST,
    MASKS,
    RECOVERED,
    RECOVERY,
    UPDATES,
    VERSION,
    recovery_of,
)
from tasks.sources.base import fetch_model
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import DType, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REGISTERED = "models:/"

logger = logging.getLogger("dass")


def load(where: str | Path, base: Path | None = None) -> "PreTrainedModel":
    """A version as a transformers causal LM, in the dtype it is stored in.

    Args:
        where: a version folder, "models:/NAME@ALIAS" or "models:/NAME/3". The registry is at MLFLOW_TRACKING_URI, else
            the mlflow.db of the workspace in the current folder. What comes from there is what the signed ledger says:
            `tasks.registry.checked`. A folder that is named itself is taken as it is.
        base: for masks-only versions, a folder with the base; None finds or fetches it.

    Raises:
        InputError: there is no such version, it is none, its base is not to be had, or transformers would make up,
            drop or resize a weight.
        SignatureError, BrokenLedger, ForeignChampion: it is not what was registered and signed, or not the champion.
        TrackingError: MLflow cannot be reached.
    """
    from dass.model.pretrained import load_model

    with opened(where) as folder, checkpoint_of(folder, base, workspace_here()) as checkpoint:
        return load_model(checkpoint)


def materialize_version(folder: Path, target: Path, base: Path | None = None, ws: Workspace | None = None) -> None:
    """Write the full checkpoint of a version, with its model card, bill of materials and the base's licence.

    Args:
        folder: the version folder.
        target: where to; complete or not there.
        base: as in `base_of`.
        ws: as in `base_of`.

    Raises:
        InputError: `target` holds something, or lies among the workspace's own files; as `load`.
        SignatureError: a symlink or a pickle is in the version.
    """
    _check_target(target, ws, {"the version": folder} | ({} if base is None else {"the base": base}))
    kept = _checkpoint_in(folder)
    with complete_folder(target) as made:
        if kept is None:
            _apply_masks(folder, made, base, ws)
        else:
            _copy(kept, made)
        for name in (CARD, BOM):
            shutil.copyfile(folder / name, made / name)


def materialize_registered(ws: Workspace, model: str, version: str, target: Path) -> None:
    """Write the full checkpoint of a registered version that is what the ledger says.

    Raises:
        InputError: there is no such version; as `materialize_version`.
        SignatureError, BrokenLedger, ForeignChampion: as `checked_version`.
        TrackingError: MLflow failed.
    """
    _check_target(target, ws, {})  # before anything is downloaded
    with tracking(ws) as client, checked_version(client, model, version, ws).folder() as folder:
        materialize_version(folder, target, ws=ws)


def _check_target(target: Path, ws: Workspace | None, kept: dict[str, Path]) -> None:
    own = {} if ws is None else {f"the workspace's {path.name}": path for path in ws.own}
    check_place(target, kept | own)
    check_empty(target)


@contextmanager
def opened(where: str | Path) -> Generator[Path]:
    """The folder of a version, as `load` names it. What comes from the registry is checked before it is given."""
    if not str(where).startswith(_REGISTERED):
        folder = Path(where)
        if not folder.is_dir():
            raise InputError(f"No folder {folder}: expected a version folder or models:/NAME@ALIAS.")
        yield folder
        return
    name, wanted = _parse(str(where))
    named = "MLFLOW_TRACKING_URI" in os.environ
    ws = Workspace(Path.cwd()) if named else Workspace.at(Path.cwd())
    with tracking(ws) as client, checked_version(client, name, wanted, ws).folder() as folder:
        yield folder


@contextmanager
def checkpoint_of(folder: Path, base: Path | None = None, ws: Workspace | None = None) -> Generator[Path]:
    """The pruned checkpoint of a version folder: where it lies, or base × masks for as long as the context is open."""
    kept = _checkpoint_in(folder)
    if kept is not None:
        check_config_bounds(Checkpoint(kept))
        yield kept
        return
    with scratch_folder(_large_files(ws), "dass-pruned") as scratch:
        _apply_masks(folder, scratch, base, ws)
        yield scratch


@contextmanager
def base_of(ws: Workspace | None, manifest: dict[str, Any], base: Path | None = None) -> Generator[Path]:
    """A folder with exactly the files of the base that a manifest names, each of the digest it gives.

    Args:
        ws: its artifacts/base is used when that is the base; relative sources are relative to it.
        manifest: dass/manifest.json.
        base: where the base is; None looks into the workspace, then fetches it from where it was fetched first.

    Raises:
        UnavailableError: what is there is another base, and it cannot be fetched.
    """
    wanted = _files_of(manifest)
    tried = []
    with scratch_folder(_large_files(ws), "dass-base") as scratch:
        present = base or (ws.base if ws and ws.base.is_dir() else None)
        if present is not None:
            found = _digests(present, wanted)
            if found == wanted:
                yield _only(present, wanted, scratch / "base")
                return
            tried.append(f"{present} has {digest_of(found)}")
        if base is None:
            for dtype in _dtypes(manifest["base"]):
                fetched = scratch / f"fetched-{dtype}"
                told = _fetch(manifest["base"], ws.root if ws else Path(), dtype, fetched)
                found = _digests(fetched, wanted)
                if told is None and found == wanted:
                    yield _only(fetched, wanted, scratch / "base")
                    return
                tried.append(told or f"{manifest['base']['uri']} has {digest_of(found)} now")
                shutil.rmtree(fetched)
        raise UnavailableError(
            f"The masks belong to the base with digest {digest_of(wanted)}, and {'; '.join(dict.fromkeys(tried))}. "
            "Give the folder of that base."
        )


def _parse(uri: str) -> tuple[str, str]:
    rest = uri.removeprefix(_REGISTERED)
    separator = "/" if "/" in rest else "@"
    name, _, wanted = rest.rpartition(separator)
    if not name or not wanted or wanted.isdecimal() != (separator == "/"):
        raise InputError(f"{uri!r} names no version: expected models:/NAME@ALIAS or models:/NAME/3.")
    return name, wanted


def workspace_here() -> Workspace | None:
    """The workspace in the current folder, if that is one."""
    try:
        return Workspace.at(Path.cwd())
    except InputError:
        return None


def _large_files(ws: Workspace | None) -> Path:
    """Beside the workspace's own large files rather than in /tmp, which may be small."""
    return ws.private if ws and ws.private.is_dir() else Path(gettempdir())


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = read_json(folder / name)
    except FileNotFoundError:
        raise InputError(f"{folder} is no version folder: it has no {name}.") from None
    except ValueError:
        raise InputError(f"{folder / name} is damaged: it is not JSON.") from None
    if not isinstance(record, dict):
        raise InputError(f"{folder / name} is damaged: expected an object.")
    return record


def _checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that a version folder holds; None when it holds masks only."""
    version = _record(folder, VERSION)
    if version.get("format") != FORMAT:
        raise InputError(f"{folder / VERSION} has format {version.get('format')!r}: expected {FORMAT}.")
    refuse_links_and_pickles(folder)
    if version["checkpoint"] is None:
        return None
    path = folder / version["checkpoint"]
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_dir():
        raise InputError(f"{folder / VERSION} names {version['checkpoint']!r}: expected a folder of the version.")
    return path


def _copy(checkpoint: Path, target: Path) -> None:
    """What is read of a version's checkpoint, with its record."""
    found = contents(checkpoint)
    if line := found.told(checkpoint):
        logger.warning(line)
    for name in [*found.names, RECORD]:
        if (checkpoint / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint / name, target / name)


def _apply_masks(folder: Path, target: Path, base: Path | None, ws: Workspace | None) -> None:
    """Base × masks, after both were found to be what the manifest says."""
    manifest = _record(folder, MANIFEST)
    masks = MaskFile(folder / MASKS)
    if masks.digest != manifest["masks"]["digest"]:
        raise InputError(
            f"{folder / MASKS} has digest {masks.digest}, and its manifest says {manifest['masks']['digest']}: "
            "these are other masks."
        )
    updates, tuned = values_of(folder, manifest, masks)
    with base_of(ws, manifest, base) as dense:
        how = {"settings": manifest["settings"]["prune"], "history": manifest["base"]["pruned"]}
        apply_to_checkpoint(Checkpoint(dense), masks, target, updates, tuned=tuned, **how)


def values_of(folder: Path, manifest: dict[str, Any], masks: MaskFile) -> tuple[Updates, list[str]]:
    """The new values that a version's folder holds, held to its records, and the names of the tuned tensors.

    Raises:
        InputError: they are not what the manifest and the record of recovery name, or these do not belong together.
    """
    recovery = recovery_of(folder)
    check_recovery_fits(recovery, manifest, folder / RECOVERY)
    return named_updates(
        masks, [(folder / UPDATES, manifest["updates"]), (folder / RECOVERED, recovery.get("updates"))]
    )


def _files_of(manifest: dict[str, Any]) -> dict[str, str]:
    files: dict[str, str] = manifest["base"]["files"]
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or inside.as_posix() != name or name == ".":
            raise InputError(f"The manifest names {name!r} as a file of the base: expected a file inside its folder.")
    return files


def _digests(folder: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Of those files that are there."""
    return {name: sha256_file(folder / name) for name in wanted if (folder / name).is_file()}


def _only(folder: Path, names: dict[str, str], target: Path) -> Path:
    """A view of a folder without what does not belong to the base, such as source.json."""
    target.mkdir()
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).symlink_to((folder / name).resolve())
    return target


def _dtypes(base: dict[str, Any]) -> list[DType]:
    """The manifest says what the base is stored in, not whether `sources.dtype` asked for it: both ways are tried."""
    return ["auto", base["dtype"]] if base["dtype"] in get_args(DType) else ["auto"]


def _fetch(base: dict[str, Any], root: Path, dtype: DType, folder: Path) -> str | None:
    """Fetch the base as the stage `sources` did. Returns why that failed, in a few words, or None."""
    folder.mkdir()
    try:
        pin = {"sha256": base["sha256"], "revision": base["revision"]}
        fetch_model(Source(uri=base["uri"], sha256=base["sha256"]), pin, root, dtype, folder)
    except InputError as error:
        return f"it cannot be fetched from {base['uri']} ({str(error).rstrip('.')})"
    return None
