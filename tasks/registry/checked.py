"""The one check behind every door: a registered version, held to what the signed ledger says of it.

A name becomes one version, once. The ledger is read whole, the entry that registered the version names its signature,
the signature names its files, and each file is compared when it is used. Nothing else that MLflow's database says of a
version is believed: any client can write tags, aliases and sources.
"""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.files import read_json, sha256_file
from tasks.pruning.recovered import NOT_TRAINED
from tasks.registry.chain import Chain
from tasks.registry.entry import Entry
from tasks.registry.keyring import Key
from tasks.registry.ledger import Ledger
from tasks.registry.signing import SIGNATURE, SignatureError, check, signed_files
from tasks.registry.version_folder import MANIFEST, RECOVERY, TASKS, VERSION
from tasks.registry.versions import file_of, find_version, folder_of
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the version in production. The ledger says which one that is."""


class ForeignChampion(Exception):
    """The alias is not where the ledger put it. One line: both versions, and what to do."""


@dataclass(frozen=True)
class CheckedVersion:
    """A version whose signature is the one that the ledger registered.

    Attributes:
        made: MLflow's record of it. Its tags are anybody's.
        number: its number.
        entry: the ledger's entry that registered it.
        key: the key that signed it.
        chain: the ledger as it was read.
        signed: file name -> sha256, as signed.
    """

    made: "ModelVersion"
    number: str
    entry: Entry
    key: Key
    chain: Chain
    signed: dict[str, str]
    _client: "MlflowClient"

    @property
    def model(self) -> str:
        return str(self.made.name)

    @property
    def told(self) -> str:
        return f"{self.model} version {self.number}"

    @property
    def tasks(self) -> dict[str, Any]:
        """What it says of zero-shot tasks, checked; nothing where none was asked. Raises as `record`."""
        tasks: dict[str, Any] = self.record(TASKS) if TASKS in self.signed else {"tasks": {}}
        return tasks

    @property
    def recovery(self) -> dict[str, Any]:
        """What it says of recovery, checked; that nothing was trained where it says nothing. Raises as `record`."""
        recovery: dict[str, Any] = self.record(RECOVERY) if RECOVERY in self.signed else NOT_TRAINED
        return recovery

    def record(self, name: str) -> Any:
        """A JSON file of the version, checked.

        Raises:
            SignatureError: it is not what was signed.
            InputError, UnavailableError: as `file_of`.
        """
        with self.file(name) as path:
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.signed[name]:  # these very bytes are used
            raise self._differs(name)
        return json.loads(content)

    @contextmanager
    def file(self, name: str) -> Generator[Path]:
        """One file of the version, checked before it is given and not changed until the context ends.

        Raises:
            SignatureError: it is not what was signed, or was changed while it was read.
            InputError, UnavailableError: as `file_of`.
        """
        with file_of(self._client, self.made, name) as path:
            before = _state(path)
            if name not in self.signed:
                raise SignatureError(f"{name} of {self.told} is extra: it was never signed.")
            if sha256_file(path) != self.signed[name]:
                raise self._differs(name)
            yield path
            if _state(path) != before:
                raise SignatureError(f"{name} of {self.told} was changed while it was read.")

    @contextmanager
    def folder(self) -> Generator[Path]:
        """The whole folder, every file checked before it is given and not changed until the context ends.

        Raises:
            SignatureError: it is not what was signed, or was changed while it was read.
            UnavailableError: its files are gone.
        """
        with folder_of(self._client, self.made) as folder:
            before = {name: _state(folder / name) for name in self.signed}
            check_folder(folder, self.model, self.entry, self.key)
            yield folder
            for name, state in before.items():
                if _state(folder / name) != state:
                    raise SignatureError(f"{name} of {self.told} was changed while it was read.")

    def _differs(self, name: str) -> SignatureError:
        return SignatureError(f"{name} of {self.told} differs from what was signed.")


def checked_version(client: "MlflowClient", model: str, wanted: str, ws: Workspace | None = None) -> CheckedVersion:
    """A version by number or alias, held to what the ledger says.

    Args:
        client: MLflow.
        model: registered model's name.
        wanted: number or alias; "champion" must be where the ledger put it.
        ws: as for `Ledger.open`.

    Raises:
        UnknownVersionError: there is no such version.
        BrokenLedger: the ledger is not whole, or does not know the version.
        ForeignChampion: the alias is not where the ledger put it.
        SignatureError: the version's signature is not the registered one, or its key was revoked.
    """
    made = find_version(client, model, wanted)
    number = str(made.version)
    ledger = Ledger.open(client, model, ws)
    chain = ledger.chain()
    ledger.check_heads(chain.entries)
    if wanted != number and wanted == CHAMPION and chain.champion != number:
        raise ForeignChampion(misplaced(model, number, chain.champion))
    return held_to(client, made, chain)


def held_to(client: "MlflowClient", made: "ModelVersion", chain: Chain) -> CheckedVersion:
    """A version held to a ledger that was read already; as `checked_version`."""
    number = str(made.version)
    entry, key = registration_of(chain, made.name, number)
    with file_of(client, made, SIGNATURE) as path:
        check_registered_signature(path, made.name, entry)
        signed = signed_files(path)
        check_registered_signature(path, made.name, entry)  # as it was read, too
    version = CheckedVersion(made, number, entry, key, chain, signed, client)
    check_names(version.record(VERSION), version.signed[MANIFEST], entry)
    return version


def registration_of(chain: Chain, model: str, number: str) -> tuple[Entry, Key]:
    """The entry that registered a version, and the key that signed it.

    Raises:
        SignatureError: the ledger does not know the version, or the key was revoked since.
    """
    entry = chain.registered(number)
    if entry is None:
        raise SignatureError(f"{model} version {number} is not in the ledger: it was never registered by dass.")
    key = chain.keyring.keys[entry.key]
    if key.state == "revoked":
        raise SignatureError(
            f"{model} version {number} was registered with key {key.told}, which was revoked in entry {key.since}. "
            "Register its result again with another key: dass run"
        )
    return entry, key


def check_registered_signature(signature: Path, model: str, entry: Entry) -> None:
    """Raise SignatureError when a signature file is not the one that was registered."""
    found, expected = sha256_file(signature), entry.details.get("signature")
    if found != expected:
        raise SignatureError(
            f"{SIGNATURE} of {model} version {entry.version} has the digest {found[:16]}, and entry {entry.n} of the "
            f"ledger registered {str(expected)[:16]}: the folder is another version's, or was signed again."
        )


def check_names(version: Any, manifest: str, entry: Entry) -> None:
    """Raise SignatureError when version.json, which is signed, names another version than its ledger entry does."""
    said = {name: version.get(name) if isinstance(version, dict) else None for name in ("model", "registration")}
    named = {"model": entry.model, "registration": entry.details.get("registration")}
    if said != named or version.get("manifest") != manifest or entry.manifest != manifest:
        raise SignatureError(
            f"{VERSION} of {entry.model} version {entry.version} names another version than entry {entry.n} of the "
            "ledger does."
        )


def check_folder(folder: Path, model: str, entry: Entry, key: Key) -> None:
    """Check a version's folder, wherever it lies, against the entry that registered it.

    Raises:
        SignatureError: a file is missing, extra or differs; the signature or the names in it are another version's.
    """
    signature = folder / SIGNATURE
    if signature.is_file() and not signature.is_symlink():
        check_registered_signature(signature, model, entry)
    check(folder, key.public)
    check_names(read_json(folder / VERSION), sha256_file(folder / MANIFEST), entry)


def misplaced(model: str, alias: str | None, champion: str | None) -> str:
    """What is wrong with the alias `champion`, and how it is put right."""
    found = f"The alias {CHAMPION!r} of {model!r} is {'missing' if alias is None else f'on version {alias}'}"
    if champion is None:
        return (
            f"{found}, which the ledger never promoted; nothing was promoted yet. "
            f"Remove the alias in MLflow, then run: dass promote {alias}"
        )
    return (
        f"{found}, and the ledger's champion is version {champion}. Somebody set it by hand, or a promotion was "
        f'interrupted. Run: dass history, or dass rollback --to {champion} --reason "..."'
    )


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or exchanged."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
