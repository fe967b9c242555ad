"""`dass keys`: who may register, promote and change this very list.

The list is part of the signed ledger: it begins with the keys that dass.keys names (or, where there is no such file,
with the key of whoever registered first), and each change is an entry that a key manager signed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.registry.chain import checked_chain
from tasks.registry.key_file import fingerprint, key_file, key_name, make_key, public_half, public_key
from tasks.registry.keyring import ROLES, Key, Keyring
from tasks.registry.ledger import Ledger, Overtaken, patiently
from tasks.registry.ledger_run import find_model
from tasks.registry.publishing import anchor_ledger
from tasks.registry.timeline import plain
from tasks.registry.tracking import tracking
from tasks.registry.trust import KEYS, read_keys, write_keys
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table

_LARGEST = 1 << 16


def start(ws: Workspace, model: str) -> dict[str, Any]:
    """Write dass.keys: the keys that the model's ledger must begin with.

    Returns:
        {"file", "written": whether dass.keys was made now, "keys": [{"name", "roles", "public"}], "entry": number of
        the entry that begins the list, None before the first registration}

    Raises:
        InputError: dass.keys is damaged.
        BrokenLedger: the ledger is not whole.
        TrackingError: MLflow failed.
    """
    with tracking(ws) as client:
        ledger = None if find_model(client, model) is None else Ledger.open(client, model, ws)
        chain = checked_chain(model, [] if ledger is None else ledger.lines())
        known = read_keys(ws)
        if known is not None:
            keys = known
        elif chain.root is not None:
            keys = [Key.read(each) for each in chain.root.details["keys"]]
        else:
            keys = [Key(key_name(), fingerprint(public_key()), public_key(), ROLES)]
        if known is None:
            write_keys(ws, keys)
        root = ledger.chain().root if ledger is not None else None
        if root is not None:
            anchor_ledger(ws, client, model)
    return {
        "file": str(ws.root / KEYS),
        "written": known is None,
        "keys": [key.as_json() for key in keys],
        "entry": None if root is None else root.n,
    }


def listed(ws: Workspace, model: str) -> dict[str, Any]:
    """The keys that a model's ledger lists, or what dass.keys lists before there is one.

    Returns:
        {"model", "keys": [{"name", "fingerprint", "roles", "state", "since": entry, "you": whether it is this user's}]}
    """
    with tracking(ws) as client:
        keyring = Keyring()
        if find_model(client, model) is not None:
            keyring = Ledger.open(client, model, ws).chain().keyring
    keys = list(keyring.keys.values()) or read_keys(ws) or []
    own = fingerprint(public_key())
    return {
        "model": model,
        "keys": [
            {
                "name": key.name,
                "fingerprint": key.fingerprint,
                "roles": list(key.roles),
                "state": key.state,
                "since": key.since if keyring.keys else None,
                "you": key.fingerprint == own,
            }
            for key in keys
        ],
    }


def add(ws: Workspace, model: str, file: Path, name: str, roles: list[str]) -> dict[str, Any]:
    """Add a public key to the list, or give one of it other roles.

    Args:
        ws: the workspace.
        model: registered model.
        file: its public half, PEM.
        name: what people call it: it becomes the actor of what it signs.
        roles: of ROLES.

    Raises:
        InputError: this is no public key, no role or no name; or this user may not change the list.
    """
    key = _described(_read(file), name, roles)
    with tracking(ws) as client:
        known = Ledger.open(client, model, ws).chain().keyring.keys.get(key.fingerprint)
    if known is not None and known.state == "trusted" and known.as_json() == key.as_json():
        return {"entry": known.since, "key": key.fingerprint}  # such as behind a process that was killed
    return _write(ws, model, "key_added", key.fingerprint, {"key": key.as_json()})


def revoke(ws: Workspace, model: str, wanted: str, reason: str) -> dict[str, Any]:
    """Distrust a key from now on: it signs no more, and no version that it registered is used any more.

    Raises:
        InputError: there is no such key, it is given up already, it is the last key manager, or there is no reason.
    """
    if not reason.strip():
        raise InputError('A revocation needs a reason, which goes to the ledger. Add: --reason "..."')
    with tracking(ws) as client:
        key = _one(Ledger.open(client, model, ws).chain().keyring, wanted)
    return _write(ws, model, "key_revoked", key.fingerprint, {"reason": reason, "name": key.name})


def rotate(ws: Workspace, model: str, to: Path | None = None) -> dict[str, Any]:
    """Let another key take this user's place, with its name and roles. What the old one signed still holds.

    Without `to` a new key is made, and takes the old one's place on this machine; the old one is kept beside it.

    Args:
        ws: the workspace.
        model: registered model.
        to: the public half of a key that there is already.

    Raises:
        InputError: this user's key is not in the list; the new one is, or cannot be used.
    """
    with tracking(ws) as client:
        keyring = Ledger.open(client, model, ws).chain().keyring
    own = keyring.keys.get(fingerprint(public_key()))
    if own is None:
        raise InputError(f"Your key {key_name()} is not in the list of {model!r}: there is nothing to rotate")
    if to is not None:
        public = _read(to)
        new = Key(own.name, fingerprint(public), public, own.roles)
        return {**_write(ws, model, "key_rotated", new.fingerprint, {"key": new.as_json()}), "old": None}
    path = key_file()
    following = path.with_name(f"{path.name}.next")
    if own.state == "rotated" and following.is_file():  # killed between the entry and the renaming
        successor = keyring.keys.get(fingerprint(public_half(following)))
        if successor is not None and successor.state == "trusted":
            return {"entry": successor.since, "key": successor.fingerprint, "old": str(_exchange(path, following, own))}
    if not following.is_file():
        make_key(following)
    public = public_half(following)
    new = Key(own.name, fingerprint(public), public, own.roles)
    done = _write(ws, model, "key_rotated", new.fingerprint, {"key": new.as_json()})
    return {**done, "old": str(_exchange(path, following, own))}


def _exchange(path: Path, following: Path, old: Key) -> Path:
    """Put the new private key into the old one's place; a killed process leaves one of both there at any moment."""
    kept = path.with_name(f"{path.stem}.{old.fingerprint[:8]}{path.suffix}")
    if not kept.exists():
        os.link(path, kept)
    os.replace(following, path)
    return kept


def _write(ws: Workspace, model: str, event: str, key: str, details: dict[str, Any]) -> dict[str, Any]:
    with tracking(ws) as client:
        ledger = Ledger.open(client, model, ws)
        for _ in patiently(f"{ledger} is written by others all the time"):
            try:
                entry = ledger.append(event, "", key, details, behind=ledger.chain())
                break
            except Overtaken:
                continue
        ledger.chain()
        anchor_ledger(ws, client, model)
    return {"entry": entry.n, "key": key}


def _described(public: str, name: str, roles: list[str]) -> Key:
    try:
        return Key.read({"name": name, "roles": roles, "public": public})
    except ValueError as error:
        raise InputError(
            f"This cannot be a key of the list ({error}): expected --name NAME and --role of {', '.join(ROLES)}"
        ) from None


def _one(keyring: Keyring, wanted: str) -> Key:
    found = keyring.find(wanted)
    trusted = [key for key in found if key.state == "trusted"]
    if len(trusted) == 1:
        return trusted[0]
    if trusted:
        raise InputError(f"{wanted!r} names {len(trusted)} keys. Name one by its fingerprint: dass keys list")
    if found:
        raise InputError(f"Key {found[0].told} was {found[0].state} already, in entry {found[0].since}")
    raise InputError(f"There is no key {wanted!r} in the list: expected a name or a fingerprint. See: dass keys list")


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file} is no public key: expected PEM")
        text = file.read_text(encoding="ascii")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): expected a public key, PEM") from None
    except UnicodeError:
        raise InputError(f"{file} is no public key: expected PEM") from None
    if "PRIVATE KEY" in text:
        raise InputError(
            f"{file} holds a private key: it stays with its owner. Give its public half (dass keys list --public)"
        )
    fingerprint(text)
    return text


def keys_table(record: dict[str, Any]) -> Fitted:
    """The list for a terminal."""

    def build(width: int) -> "Table":
        from rich.markup import escape

        title = f"Keys of {escape(plain(record['model']))}"
        made = table(width, "name", "fingerprint", "may", "", title=title, whole=("fingerprint",))
        for key in record["keys"]:
            state = key["state"] if key["state"] == "trusted" else f"{key['state']} in entry {key['since']}"
            you = " (you)" if key["you"] else ""
            made.add_row(escape(plain(key["name"])) + you, key["fingerprint"][:16], ", ".join(key["roles"]), state)
        return made

    return Fitted(build)
