"""The steps of a proof of a version's folder, each raising at the first thing that is not as it must be."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dass.files import read_json
from dass.masks.mask_file import MaskFile, check_masks_fit
from dass.masks.proof import ProofError, prove_patterns, prove_weights
from dass.model.checkpoint import Checkpoint
from tasks.promotion.champion import check_alias
from tasks.registry.anchor import check_anchor, git_store
from tasks.registry.checked import check_folder, registration_of
from tasks.registry.ledger import BrokenLedger, Ledger
from tasks.registry.loading import base_of, values_of
from tasks.registry.version_folder import MANIFEST, MASKS, VERSION
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def base_once(ws: Workspace, folder: Path) -> Generator[Callable[[], Path]]:
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


def check_files(ws: Workspace, client: "MlflowClient", model: str, folder: Path, number: str | None) -> str:
    """Every file is as it was signed, and the signature is the one that the ledger registered for this version."""
    chain = Ledger.open(client, model, ws).chain()
    entry, key = registration_of(chain, model, _known(model, number))
    check_folder(folder, model, entry, key)
    return f"all files are as signed with key {key.told}"


def check_ledger(ws: Workspace, client: "MlflowClient", model: str, number: str | None) -> str:
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


def check_weights(folder: Path, base_folder: Callable[[], Path]) -> str:
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


def check_pattern(folder: Path) -> str:
    """Every matrix obeys its layer's pattern in every group, by its masks."""
    manifest, masks = read_json(folder / MANIFEST), MaskFile(folder / MASKS)
    prove_patterns(manifest, masks)
    return f"{manifest['settings']['prune']['pattern']} holds in every group of {len(masks)} matrices"
