"""`dass verify`: whether a version is exactly what the registry says it is, step by step.

Every step is taken, also behind one that failed: what is wrong shows more clearly from several sides. Tensors are
streamed; no model is built. Only damage and disagreement fail a step. What lies with the machine (a base that is not to
be had, a full disk, a server that is down) proves nothing: it is raised, and the ledger is not told.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dass.errors import InputError, UnavailableError
from dass.files import sha256_file
from dass.masks.pruned_record import RECORD
from tasks.promotion.proof import Proof, take_step
from tasks.registry.ledger import BrokenLedger, Ledger, NotAllowed
from tasks.registry.tracking import is_denied, reading
from tasks.registry.version_folder import MANIFEST, SIGNATURE
from tasks.registry.versions import UnknownVersionError, all_versions, find_version, folder_of, is_a_path
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger("dass")


def verify_version(ws: Workspace, model: str, version: str, *, replay: bool = False) -> Proof:
    """Verify a registered version, and write the outcome to the ledger when that is whole.

    Args:
        ws: its artifacts/base is used when it is the right one; DVC's remote is the one it names.
        model: registered model.
        version: number or alias.
        replay: also prune again from base and calibration as DVC has them.

    Raises:
        InputError: there is no such version.
        UnavailableError: its files, its base or, with `replay`, DVC's data are not to be had. Nothing was recorded.
        TrackingError: MLflow failed.
        OSError: this machine refused (permissions, a full disk). Nothing was recorded.
    """
    with reading(ws) as client:
        made = find_version(client, model, version)
        with folder_of(client, made) as folder:
            number = str(made.version)
            proof = _proof(ws, client, f"{model} version {number}", model, folder, number, replay)
        record_proof(ws, client, made, proof)
        return proof


def verify_named(ws: Workspace, model: str, what: str, *, replay: bool = False) -> Proof:
    """Verify what a name stands for: with a slash in it a folder; else a number or alias, and a version's folder last.

    Where a name could have meant both, which was taken is told.

    Raises:
        InputError: it is neither; as `verify_version` and `verify_folder`.
    """
    folder = Path(what)
    if is_a_path(what):
        if not folder.is_dir():
            raise InputError(f"There is no folder {what}: expected a version's folder, or a version's number or alias.")
        return verify_folder(ws, model, folder, replay=replay)
    with reading(ws) as client:
        try:
            number = find_version(client, model, what).version
        except UnknownVersionError as error:
            if not _is_ours(folder):
                also = (
                    f" The folder {what} here is none of dass: no {MANIFEST}, no {RECORD}." if folder.is_dir() else ""
                )
                raise InputError(f"{error}{also}") from None
            number = None
    if number is None:
        logger.warning(f"{model} has no version or alias {what}: this is the folder ./{what}")
        return verify_folder(ws, model, folder, replay=replay)
    if _is_ours(folder):
        logger.warning(f"{what} is version {number} of {model}. For the folder of that name write ./{what}")
    return verify_version(ws, model, str(number), replay=replay)


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / RECORD).is_file()


def verify_all(ws: Workspace, model: str, *, replay: bool = False) -> Iterator[Proof]:
    """Verify every version of a model, newest first.

    Raises:
        InputError: there is none.
        UnavailableError, OSError: as in `verify_version`, about the first of those that could not be verified; all the
            others were.
    """
    faults: list[Exception] = []
    for number in numbers_of(ws, model):
        try:
            yield verify_version(ws, model, number, replay=replay)
        except (UnavailableError, OSError) as fault:
            faults.append(fault)
    if faults:
        raise faults[0]


def numbers_of(ws: Workspace, model: str) -> list[str]:
    """The versions of a model, newest first.

    Raises:
        InputError: there is none.
    """
    with reading(ws) as client:
        numbers = [str(made.version) for made in all_versions(client, model)]
    if not numbers:
        raise InputError(f"MLflow has no model {model!r} (register.model in params.yaml). Run: dass run")
    return numbers


def verify_folder(ws: Workspace, model: str, folder: Path, *, replay: bool = False) -> Proof:
    """Verify a version's folder that was downloaded or copied, or a checkpoint that was materialised or published.

    Nothing is written to the ledger: what is wrong with a copy says nothing of the version.

    Raises:
        InputError: it is neither; or `replay`, and it is a checkpoint.
        TrackingError: MLflow failed.
    """
    if not _is_ours(folder):
        raise InputError(
            f"{folder} has neither {MANIFEST} nor {RECORD}: expected a registered version's folder, a checkpoint "
            "that dass materialize or dass publish wrote, or a version's number."
        )
    if (folder / RECORD).is_file():  # a published one has the version's records, too
        if replay:
            raise InputError(f"--replay proves a version, and {folder} is a checkpoint. Name the version.")
        from tasks.promotion.materialised import verify_materialised  # here and below: torch takes seconds

        return verify_materialised(ws, model, folder)
    signature = sha256_file(folder / SIGNATURE) if (folder / SIGNATURE).is_file() else None
    with reading(ws) as client:
        return _proof(ws, client, str(folder), model, folder, _registered_with(ws, client, model, signature), replay)


def _registered_with(ws: Workspace, client: "MlflowClient", model: str, signature: str | None) -> str | None:
    """The newest version that the ledger registered with a signature; None: there is none, or no ledger to ask."""
    try:
        entries = Ledger.open(client, model, ws).entries()
    except BrokenLedger:
        return None
    same = [
        each.version for each in entries if each.event == "registered" and each.details.get("signature") == signature
    ]
    return same[-1] if same else None


def record_proof(ws: Workspace, client: "MlflowClient", made: "ModelVersion", proof: Proof) -> None:
    """Append the outcome to the ledger, unless the ledger itself is what is broken, or this user only reads."""
    steps = [[step.name, step.passed, step.told[:200]] for step in proof.steps]
    try:
        ledger = Ledger.open(client, made.name, ws)
        entry = ledger.chain().registered(str(made.version))
        if entry is not None:
            event = "failed" if proof.failed else "verified"
            ledger.record(event, str(made.version), entry.manifest, {"steps": steps})
    except BrokenLedger:
        return  # the proof says so
    except NotAllowed as error:
        logger.warning(f"The outcome is not recorded. {error}")
    except Exception as error:
        if not is_denied(error):
            raise
        logger.warning("The outcome is not recorded: this account only reads what is in MLflow.")


def _proof(
    ws: Workspace,
    client: "MlflowClient",
    what: str,
    model: str,
    folder: Path,
    number: str | None,
    replay: bool,
) -> Proof:
    """Take every step. When one could not be taken and no other failed, what kept it from being taken is raised."""
    from tasks.promotion.configuration import check_configuration
    from tasks.promotion.proof_steps import base_once, check_files, check_ledger, check_pattern, check_weights

    with base_once(ws, folder) as base:
        checks: dict[str, Callable[[], str]] = {
            "files": lambda: check_files(ws, client, model, folder, number),
            "ledger": lambda: check_ledger(ws, client, model, number),
            "weights": lambda: check_weights(folder, base),
            "pattern": lambda: check_pattern(folder),
            "configuration": lambda: check_configuration(folder, base),
        }
        if replay:
            from tasks.promotion.replay import replayed  # here: it prunes, and transformers takes seconds

            checks["replay"] = lambda: replayed(ws, folder)
        proof = Proof(what, [take_step(name, check, folder) for name, check in checks.items()])
    faults = [step.fault for step in proof.steps if step.fault is not None]
    if faults and not proof.failed:
        raise faults[0]
    return proof
