"""`dass verify`: whether a version is exactly what the registry says it is, step by step.

Every step is taken, also behind one that failed: what is wrong shows more clearly from several sides. Tensors are
streamed; no model is built. Only damage and disagreement fail a step. What lies with the machine (a base that is not to
be had, a full disk, a server that is down) proves nothing: it is raised, and the ledger is not told.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dass.errors import InputError, UnavailableError
from dass.files import read_json, sha256_file
from dass.masks.mask_file import MaskFile, check_masks_fit
from dass.masks.proof import ProofError, prove_patterns, prove_weights
from dass.model.checkpoint import Checkpoint
from tasks.promotion.champion import check_alias
from tasks.promotion.configuration import check_configuration
from tasks.registry.anchor import check_anchor, git_store
from tasks.registry.checked import check_folder, registration_of
from tasks.registry.ledger import BrokenLedger, Ledger, NotAllowed
from tasks.registry.loading import base_of, values_of
from tasks.registry.tracking import is_outage, tracking
from tasks.registry.version_folder import MANIFEST, MASKS, SIGNATURE, VERSION
from tasks.registry.versions import UnknownVersionError, all_versions, find_version, folder_of, is_a_path
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from rich.table import Table

_OUTCOMES = {True: "passed", False: "FAILED", None: "not taken"}

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class Step:
    """One step of a proof.

    Attributes:
        name: files, ledger, weights, pattern, configuration or replay.
        passed: None when it could not be taken here, which says nothing of the version.
        told: what was found, or what was missing.
        fault: why it could not be taken.
    """

    name: str
    passed: bool | None
    told: str
    fault: Exception | None = None

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "told": self.told}


@dataclass(frozen=True)
class Proof:
    """All steps.

    Attributes:
        what: which version or folder.
        steps: in order.
    """

    what: str
    steps: list[Step]

    @property
    def failed(self) -> str:
        """Names of the steps that failed, "" when none did."""
        return ", ".join(step.name for step in self.steps if step.passed is False)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "steps": [step.as_json() for step in self.steps],
            "passed": all(step.passed for step in self.steps),
        }


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
    with tracking(ws) as client:
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
    with tracking(ws) as client:
        try:
            number = find_version(client, model, what).version
        except UnknownVersionError as error:
            if not (folder / MANIFEST).is_file():
                also = f" The folder {what} here is no version's: it has no {MANIFEST}." if folder.is_dir() else ""
                raise InputError(f"{error}{also}") from None
            number = None
    if number is None:
        logger.warning(f"{model} has no version or alias {what}: this is the folder ./{what}")
        return verify_folder(ws, model, folder, replay=replay)
    if (folder / MANIFEST).is_file():
        logger.warning(f"{what} is version {number} of {model}. For the folder of that name write ./{what}")
    return verify_version(ws, model, str(number), replay=replay)


def verify_all(ws: Workspace, model: str, *, replay: bool = False) -> Iterator[Proof]:
    """Verify every version of a model, newest first.

    Raises:
        InputError: there is none.
        UnavailableError, OSError: as in `verify_version`, about the first of those that could not be verified; all the
            others were.
    """
    with tracking(ws) as client:
        numbers = [str(made.version) for made in all_versions(client, model)]
    if not numbers:
        raise InputError(f"MLflow has no model {model!r} (register.model in params.yaml). Run: dass run")
    faults: list[Exception] = []
    for number in numbers:
        try:
            yield verify_version(ws, model, number, replay=replay)
        except (UnavailableError, OSError) as fault:
            faults.append(fault)
    if faults:
        raise faults[0]


def verify_folder(ws: Workspace, model: str, folder: Path, *, replay: bool = False) -> Proof:
    """Verify a version's folder that was downloaded or copied, against the version that has the same manifest.

    Nothing is written to the ledger: what is wrong with a copy says nothing of the version.

    Raises:
        InputError: it is no version's folder.
        TrackingError: MLflow failed.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} has no {MANIFEST}: expected a registered version's folder, or a version's number.")
    signature = sha256_file(folder / SIGNATURE) if (folder / SIGNATURE).is_file() else None
    with tracking(ws) as client:
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
    with _base_once(ws, folder) as base:
        checks: dict[str, Callable[[], str]] = {
            "files": lambda: _check_files(ws, client, model, folder, number),
            "ledger": lambda: _check_ledger(ws, client, model, number),
            "weights": lambda: _check_weights(folder, base),
            "pattern": lambda: _check_pattern(folder),
            "configuration": lambda: check_configuration(folder, base),
        }
        if replay:
            from tasks.promotion.replay import replayed  # here: it prunes, and transformers takes seconds

            checks["replay"] = lambda: replayed(ws, folder)
        proof = Proof(what, [_step(name, check, folder) for name, check in checks.items()])
    faults = [step.fault for step in proof.steps if step.fault is not None]
    if faults and not proof.failed:
        raise faults[0]
    return proof


@contextmanager
def _base_once(ws: Workspace, folder: Path) -> Generator[Callable[[], Path]]:
    """Gives the base that a version's manifest names, found or fetched when a step first asks for it."""
    with ExitStack() as opened:
        outcome: list[Path | Exception] = []

        def base() -> Path:
            if not outcome:
                try:
                    outcome.append(opened.enter_context(base_of(ws, read_json(folder / MANIFEST))))
                except Exception as error:  # the next step that asks hears the same, and nothing is fetched twice
                    outcome.append(error)
            if isinstance(outcome[0], Exception):
                raise outcome[0]
            return outcome[0]

        yield base


def _step(name: str, check: Callable[[], str], folder: Path) -> Step:
    try:
        return Step(name, True, check())
    except Exception as error:  # whatever a damaged file makes a reader raise: what cannot be read is not proved
        told = " ".join(_told(error).split())
        if name == "replay" and not isinstance(error, ProofError):  # all that it reads, an earlier step has checked
            return Step(name, None, told, error)
        return Step(name, None, told, error) if _is_fault(error, folder) else Step(name, False, told)


def _told(error: Exception) -> str:
    ours = type(error).__module__.startswith(("dass.", "tasks."))
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _is_fault(error: Exception, folder: Path) -> bool:
    """Whether it lies with this machine, the network or a server: then nothing was learned of the version."""
    if is_outage(error) or isinstance(error, (UnavailableError, MemoryError, ImportError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, FileNotFoundError) and error.filename:  # of the version's own files: it is damaged
        return not Path(os.fsdecode(error.filename)).is_relative_to(folder)
    return isinstance(error, OSError) or "(os error " in str(error)  # safetensors reads in Rust


def _check_files(ws: Workspace, client: "MlflowClient", model: str, folder: Path, number: str | None) -> str:
    """Every file is as it was signed, and the signature is the one that the ledger registered for this version."""
    chain = Ledger.open(client, model, ws).chain()
    entry, key = registration_of(chain, model, _known(model, number))
    check_folder(folder, model, entry, key)
    return f"all files are as signed with key {key.told}"


def _check_ledger(ws: Workspace, client: "MlflowClient", model: str, number: str | None) -> str:
    """The chain is whole and signed by keys that may, the version is in it, and the aliases are where it put them."""
    ledger = Ledger.open(client, model, ws)
    chain = check_anchor(ws, model, git_store(ws), ledger.chain)
    ledger.check_heads(chain.entries)
    entry = chain.registered(_known(model, number))
    if entry is None:
        raise BrokenLedger(f"version {number} is not in the ledger of {model}.")
    check_alias(client, ledger, chain.entries)
    return f"entry {entry.n} of {len(chain.entries)} registered it, and the chain is whole and signed"


def _known(model: str, number: str | None) -> str:
    if number is None:
        raise BrokenLedger(f"no version of {model} was registered with this signature.")
    return number


def _check_weights(folder: Path, base_folder: Callable[[], Path]) -> str:
    """The pruned checkpoint is its base times its masks."""
    manifest, version = read_json(folder / MANIFEST), read_json(folder / VERSION)
    masks = MaskFile(folder / MASKS)
    if masks.digest != manifest["masks"]["digest"]:
        raise ProofError(
            f"the masks' digest is {masks.digest[:16]}, the manifest says {manifest['masks']['digest'][:16]}."
        )
    updates, tuned = values_of(folder, manifest, masks)
    base = Checkpoint(base_folder())
    if version["artifact"] == "masks":
        check_masks_fit(base, masks)
        updates.check_fit(masks, base, tuned)
        return "the masks are the manifest's and fit its base; the weights are made from them when they are loaded"
    prove_weights(base, Checkpoint(folder / version["checkpoint"]), masks, updates or None, tuned)
    changed = "kept ones are the base's"
    if updates:
        whole = f", {len(tuned)} of them without a mask" if tuned else ""
        changed = f"{len(updates)} tensors have the new values that the signed records name{whole}"
    return f"removed weights are +0.0, {changed}, everything else is untouched"


def _check_pattern(folder: Path) -> str:
    """Every matrix obeys its layer's pattern in every group, by its masks."""
    manifest, masks = read_json(folder / MANIFEST), MaskFile(folder / MASKS)
    prove_patterns(manifest, masks)
    return f"{manifest['settings']['prune']['pattern']} holds in every group of {len(masks)} matrices"


def proof_table(proof: Proof) -> "Table":
    """Step by step, for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{escape(proof.what)}: {'not proved' if proof.failed else 'proved'}"
    table = Table("step", "", "what was found", title=title, title_justify="left")
    for step in proof.steps:
        table.add_row(step.name, _OUTCOMES[step.passed], escape(step.told))
    return table
