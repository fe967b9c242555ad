"""Proof of a checkpoint that `dass materialize` or `dass publish` wrote: it is what a version holds, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dass.files import files_in, scratch_folder, sha256_file
from dass.masks.proof import ProofError
from dass.masks.pruned_record import RECORD
from tasks.promotion.proof import Proof, take_step
from tasks.promotion.proof_steps import base_once, check_ledger, check_pattern
from tasks.registry.checked import CheckedVersion, held_to
from tasks.registry.ledger import Ledger
from tasks.registry.loading import materialize_version
from tasks.registry.signing import SIGNATURE
from tasks.registry.tracking import reading
from tasks.registry.version_folder import BOM, CARD, CHECKPOINT, RECORDS
from tasks.registry.versions import version_numbered
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LARGE = "dass-again"
_OF_THE_HUB = (".gitattributes", ".cache/huggingface/")
"""What the hub and its client put beside the files of a repository."""


def verify_materialised(ws: Workspace, model: str, folder: Path) -> Proof:
    """Compare a materialised checkpoint with the version it was written from.

    A version that holds a checkpoint has every file's digest signed. One with masks only is materialised again beside
    it, from its base, and compared.

    Args:
        ws: its artifacts/base is used when it is the right one.
        model: the registered model.
        folder: the checkpoint.

    Raises:
        UnavailableError: the version's files or its base are not to be had.
        TrackingError: MLflow failed.
    """
    with reading(ws) as client:
        version = _written_from(ws, client, model, folder)
        if version is None:
            told = f"no version of {model} has this {CARD} or {RECORD}: another model's, or edited"
            return Proof(str(folder), [take_step("version", _failing(told), folder)])
        checks: dict[str, Callable[[], str]] = {
            "version": lambda: f"{version.told} was written here, by its {CARD} or {RECORD}",
            "ledger": lambda: check_ledger(ws, client, model, version.number),
            "checkpoint": lambda: _check_bytes(ws, version, folder),
            "pattern": lambda: _check_its_pattern(version),
        }
        proof = Proof(str(folder), [take_step(name, check, folder) for name, check in checks.items()])
    faults = [step.fault for step in proof.steps if step.fault is not None]
    if faults and not proof.failed:
        raise faults[0]
    return proof


def _failing(told: str) -> Callable[[], str]:
    def check() -> str:
        raise ProofError(f"{told}.")

    return check


def _written_from(ws: Workspace, client: "MlflowClient", model: str, folder: Path) -> CheckedVersion | None:
    """The newest version that names the folder's card or record as one of its signed files."""
    present = {name: sha256_file(folder / name) for name in (CARD, RECORD) if (folder / name).is_file()}
    chain = Ledger.open(client, model, ws).chain()
    for entry in reversed(chain.entries):
        made = version_numbered(client, model, entry.version) if entry.event == "registered" else None
        if made is None:
            continue
        version = held_to(client, made, chain)
        signed = {CARD: version.signed.get(CARD), RECORD: version.signed.get(f"{CHECKPOINT}/{RECORD}")}
        if any(signed[name] == digest for name, digest in present.items()):
            return version
    return None


def _check_bytes(ws: Workspace, version: CheckedVersion, folder: Path) -> str:
    """Every file is what `dass materialize` writes of this version, and there is no other one."""
    prefix = f"{CHECKPOINT}/"
    signed = {name.removeprefix(prefix): each for name, each in version.signed.items() if name.startswith(prefix)}
    if signed:
        _compare(folder, signed | {CARD: version.signed[CARD]}, _records(version))
        return "every file has the digest that was signed for the version"
    with version.folder() as made, base_once(ws, made) as base, scratch_folder(ws.private, _LARGE) as scratch:
        materialize_version(made, scratch / "again", base())
        again = {name: sha256_file(path) for name, path in files_in(scratch / "again").items()}
    _compare(folder, again, _records(version))
    return "every file is what the version's masks make of its base, made again"


def _records(version: CheckedVersion) -> dict[str, str]:
    """What a published checkpoint has beside that, name -> sha256: the version's records, and its signature."""
    signed = {name: sha256 for name, sha256 in version.signed.items() if name == BOM or name.startswith(f"{RECORDS}/")}
    return {**signed, SIGNATURE: str(version.entry.details["signature"])}


def _compare(folder: Path, expected: dict[str, str], may_be_there: dict[str, str]) -> None:
    present = {name: path for name, path in files_in(folder).items() if not name.startswith(_OF_THE_HUB)}
    expected = expected | {name: sha256 for name, sha256 in may_be_there.items() if name in present}
    for name in sorted({*expected, *present}):
        if name not in present:
            raise ProofError(f"{name} is missing: the version has it.")
        if name not in expected:
            raise ProofError(f"{name} is extra: the version has no such file.")
        if sha256_file(present[name]) != expected[name]:
            raise ProofError(f"{name} is not the version's: it has other bytes.")


def _check_its_pattern(version: CheckedVersion) -> str:
    with version.folder() as made:
        return check_pattern(made)
