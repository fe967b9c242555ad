"""`dass audit`: an audit bundle checked by itself. Neither MLflow nor a workspace is needed, and nothing is written.

The ledger is checked as everywhere else (`tasks.registry.chain`); each version's files are held to the signature that
its entry registered. Who is trusted is the checker's: a pinned list of keys or fingerprint, what this user has seen of
the ledger before, or else the bundle's own word for it, which is told.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.registry.audit_archive import (
    BUNDLE,
    FILES,
    FORMAT,
    Archive,
    DamagedFile,
    entry_name,
    key_name,
    open_archive,
    version_name,
)
from tasks.registry.chain import BrokenLedger, Chain, checked_chain
from tasks.registry.checked import check_names
from tasks.registry.entry import Entry
from tasks.registry.keyring import Key
from tasks.registry.signing import SIGNATURE, SignatureError, named_in, signature_holds
from tasks.registry.trust import keys_of, remembered
from tasks.registry.version_folder import MANIFEST, VERSION

_FINGERPRINT = re.compile("[0-9a-f]{64}")


@dataclass
class Audit:
    """What a bundle says, and what of it does not hold.

    Attributes:
        file: the bundle.
        model, store: whose history it says it is.
        chain: its ledger; None: that is not whole.
        roots: the keys that the ledger begins with.
        trusted: why they are believed, as one line.
        versions: those it holds files of.
        notes: what could not be checked, a line each.
        faults: what does not hold, a line each that names an entry or a file.
    """

    file: Path
    model: str
    store: str
    chain: Chain | None = None
    roots: list[Key] = field(default_factory=list)
    trusted: str = ""
    versions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Bundle:
    """What bundle.json says."""

    model: str
    store: str
    n: int
    digest: str
    root: str
    versions: dict[str, list[str]]

    @classmethod
    def read(cls, file: Path, archive: Archive) -> "_Bundle":
        """Raises InputError: it is none of ours."""
        try:
            said = json.loads(archive.text(BUNDLE))
            if said.keys() != {"format", "model", "store", "head", "root", "versions"} or said["format"] != FORMAT:
                raise ValueError
            head, versions = said["head"], said["versions"]
            texts = (said["model"], said["store"], said["root"], head["digest"])
            if head.keys() != {"n", "digest"} or type(head["n"]) is not int or head["n"] < 0:
                raise ValueError
            if not all(isinstance(text, str) for text in texts) or not isinstance(versions, dict):
                raise ValueError
            if not all(isinstance(names, list) and set(names) <= set(FILES) for names in versions.values()):
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, DamagedFile):
            raise InputError(
                f"{BUNDLE} in {file} is damaged, or of another dass: expected format {FORMAT}. Get the bundle anew."
            ) from None
        return cls(said["model"], said["store"], head["n"], head["digest"], said["root"], versions)


def audit(file: Path, keys: Path | None = None, root: str | None = None) -> Audit:
    """Check a bundle.

    Args:
        file: as `dass export-audit` wrote it.
        keys: a dass.keys: the keys that the ledger must begin with.
        root: fingerprint of the key that must have begun it.

    Raises:
        InputError: it is no bundle, or `keys` or `root` is none.
    """
    if root is not None and not _FINGERPRINT.fullmatch(root):
        raise InputError(
            f"--root is {root[:80]!a}: expected a key's fingerprint, 64 hex digits (dass keys list --json)"
        )
    expected = None if keys is None else keys_of(keys)
    if keys is not None and expected is None:
        raise InputError(f"There is no {keys}: expected a list of keys, as dass keys init writes")
    with open_archive(file) as archive:
        bundle = _Bundle.read(file, archive)
        found = Audit(file, bundle.model, bundle.store)
        chain = _chain(archive, bundle, found)
        if chain is None:
            return found
        found.chain = chain
        _check_bundle(bundle, chain, found)
        _check_root(chain, found, keys, expected, root)
        _check_seen(bundle, chain, found)
        known = {BUNDLE, *(entry_name(entry.n) for entry in chain.entries)}
        for key in chain.keyring.keys.values():
            known.add(key_name(key))
            _check_key(archive, key, found)
        for version in dict.fromkeys(entry.version for entry in chain.entries if entry.event == "registered"):
            names = bundle.versions.get(version, [])
            known |= {version_name(version, name) for name in names}
            if names:
                found.versions.append(version)
            _check_version(archive, version, names, chain, found)
        found.faults += [f"{name} is extra: nothing in the ledger names it." for name in sorted(archive.names - known)]
    return found


def _chain(archive: Archive, bundle: _Bundle, found: Audit) -> Chain | None:
    """The ledger; None: it is not whole, which is noted as a fault."""
    lines = []
    for n in range(min(bundle.n, len(archive.names)) + 1):  # `n` may be anything
        try:
            lines.append(archive.text(entry_name(n)))
        except DamagedFile as error:
            found.faults.append(str(error))
            return None
    try:
        chain = checked_chain(bundle.model, lines)
    except (BrokenLedger, InputError) as error:  # InputError: of a key that is none
        found.faults.append(str(error))
        return None
    assert chain.root is not None  # there is an entry, and a signed one
    found.roots = [Key.read(each, chain.root.n) for each in chain.root.details["keys"]]
    return chain


def _check_bundle(bundle: _Bundle, chain: Chain, found: Audit) -> None:
    assert chain.root is not None
    last = chain.entries[-1]
    if bundle.digest != last.digest:
        found.faults.append(f"{BUNDLE} names another last entry than {entry_name(last.n)}.")
    if bundle.root != chain.root.digest:
        found.faults.append(f"{BUNDLE} names another root than {entry_name(chain.root.n)}.")
    registered = {entry.version for entry in chain.entries if entry.event == "registered"}
    for version in sorted(bundle.versions.keys() ^ registered):
        which = "does not name" if version in registered else "names"
        but = "registered" if version in registered else "never registered"
        found.faults.append(f"{BUNDLE} {which} version {version!a}, which the ledger {but}.")


def _check_root(
    chain: Chain, found: Audit, keys: Path | None, expected: list[Key] | None, fingerprint: str | None
) -> None:
    assert chain.root is not None
    pinned = []
    if expected is not None:
        pinned.append(f"listed in {keys}")
        if {key.fingerprint: key.roles for key in found.roots} != {key.fingerprint: key.roles for key in expected}:
            found.faults.append(
                f"{entry_name(chain.root.n)} begins the ledger with the keys "
                f"{', '.join(key.told for key in found.roots)}, and {keys} lists "
                f"{', '.join(key.told for key in expected)}."
            )
    if fingerprint is not None:
        pinned.append("pinned by --root")
        if chain.root.key != fingerprint:
            found.faults.append(
                f"{entry_name(chain.root.n)} was signed by key {chain.root.key}, and --root is {fingerprint}."
            )
    if pinned:
        found.trusted = f"The root is {' and '.join(pinned)}."


def _check_seen(bundle: _Bundle, chain: Chain, found: Audit) -> None:
    """Compare with what this user has seen of the ledger. An older bundle ends before that, which is no fault."""
    assert chain.root is not None
    for where, seen in remembered(bundle.model, bundle.store, chain.root.digest).items():
        if seen.root == chain.root.digest:
            found.trusted = found.trusted or f"The root is the one that this user has seen before ({where})."
            if seen.n >= len(chain.entries):
                found.notes.append(
                    f"The bundle ends with entry {chain.entries[-1].n}, and this user has seen entry {seen.n} "
                    f"({where}): it was written before that, or its end was cut off."
                )
                continue
        try:
            seen.check(chain, where)
        except BrokenLedger as error:
            found.faults.append(str(error))
    if not found.trusted:
        found.trusted = (
            "The root is believed as the bundle names it: compare its fingerprint with one that you know, or pin it "
            "with --keys or --root."
        )


def _check_key(archive: Archive, key: Key, found: Audit) -> None:
    try:
        if archive.text(key_name(key)) != key.public:
            found.faults.append(f"{key_name(key)} is not the key that entry {key.since} lists as {key.told}.")
    except DamagedFile as error:
        found.faults.append(str(error))


def _check_version(archive: Archive, version: str, names: list[str], chain: Chain, found: Audit) -> None:
    entry = chain.registered(version)
    assert entry is not None
    if not names:
        found.notes.append(f"Version {version}: its files were deleted, or left out. Its entries hold.")
        return
    key = chain.keyring.keys[entry.key]
    if key.state == "revoked":
        found.notes.append(f"Version {version} was registered with key {key.told}, revoked in entry {key.since}.")
    try:
        signed = _signed(archive, version, entry, key)
    except (DamagedFile, SignatureError) as error:
        found.faults.append(str(error))
        return
    for name in FILES:
        if name == SIGNATURE or (name not in signed and name not in names):
            continue
        if name not in names:
            found.notes.append(f"Version {version}: {name} was deleted, or left out.")
            continue
        try:
            _check_file(archive, version, name, signed, entry)
        except (DamagedFile, SignatureError) as error:
            found.faults.append(str(error))


def _check_file(archive: Archive, version: str, name: str, signed: dict[str, str], entry: Entry) -> None:
    place = version_name(version, name)
    content = archive.read(place)
    if name not in signed:
        raise SignatureError(f"{place} was never signed.")
    if _sha256(content) != signed[name]:
        raise SignatureError(f"{place} differs from what was signed.")
    if name == VERSION:
        check_names(json.loads(content), signed[MANIFEST], entry)


def _signed(archive: Archive, version: str, entry: Entry, key: Key) -> dict[str, str]:
    """File name -> sha256 as the version's signature says, which is the registered one and the key's.

    Raises:
        SignatureError: it is not.
        DamagedFile: it is missing or damaged.
    """
    place = version_name(version, SIGNATURE)
    content = archive.read(place)
    if _sha256(content) != entry.details.get("signature"):
        raise SignatureError(
            f"{place} has the digest {_sha256(content)[:16]}, and entry {entry.n} registered "
            f"{str(entry.details.get('signature'))[:16]!a}: it is another version's, or was changed."
        )
    try:
        text = content.decode()
        signed = named_in(text)
    except ValueError:
        raise SignatureError(f"{place} cannot be read as a signature.") from None
    if not signature_holds(text, key.public):
        raise SignatureError(f"{place} is not signed by key {key.told}, which registered the version.")
    if signed.get(MANIFEST) != entry.manifest:
        raise SignatureError(f"{place} names another manifest than entry {entry.n} does.")
    return signed


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def as_json(found: Audit) -> dict[str, Any]:
    """What was found, as JSON values."""
    chain = found.chain
    return {
        "file": str(found.file),
        "holds": not found.faults,
        "model": found.model,
        "store": found.store,
        "champion": None if chain is None else chain.champion,
        "root": None if chain is None or chain.root is None else {"entry": chain.root.n, "key": chain.root.key},
        "trusted": found.trusted,
        "keys": [
            {"name": key.name, "fingerprint": key.fingerprint, "roles": list(key.roles), "state": key.state}
            for key in ([] if chain is None else chain.keyring.keys.values())
        ],
        "versions": found.versions,
        "entries": [
            {
                "n": entry.n,
                "time": entry.time,
                "actor": entry.actor,
                "key": entry.key,
                "event": entry.event,
                "version": entry.version,
                "details": entry.details,
                "digest": entry.digest,
            }
            for entry in ([] if chain is None else chain.entries)
        ],
        "notes": found.notes,
        "faults": found.faults,
    }
