"""What was seen of a ledger before, kept where nobody who writes its database can reach it.

Three places say what a ledger must be, and each is asked whenever one is read:

dass.keys in the workspace      the list of keys that ledgers begin with; committed to git by people
~/.config/dass/trusted/         what this user has seen: how each ledger began, and its last entry then
refs/dass/ledger/MODEL          the same in the workspace's git repository, where others find it (tasks.registry.anchor)

A ledger that was cut, rewritten or exchanged since then differs from them. Where none of them knows a ledger, it is
believed as it is (trust on first use), which is told.
"""

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import digest_of, read_json, write_json
from tasks.registry.chain import BrokenLedger, Chain
from tasks.registry.key_file import fingerprint, public_key
from tasks.registry.keyring import MANAGE, Key
from tasks.workspace.folder import Workspace

logger = logging.getLogger("dass")

KEYS = "dass.keys"
"""In a workspace: the keys that its ledgers begin with."""
_KEYS_FORMAT, _SEEN_FORMAT = "dass-keys-1", "dass-seen-1"


@dataclass(frozen=True)
class Seen:
    """What is remembered of a ledger.

    Attributes:
        model: the registered model.
        store: where it lies, as it may be shown.
        root: digest of the entry its list of keys begins with.
        n, digest: of its last entry then.
        managers: fingerprints of the keys that could change the list of keys then.
        format: of this record.
    """

    model: str
    store: str
    root: str
    n: int
    digest: str
    managers: list[str]
    format: str = _SEEN_FORMAT

    @classmethod
    def of(cls, model: str, store: str, chain: Chain) -> "Seen":
        """Of a chain with an entry."""
        assert chain.root is not None
        last = chain.entries[-1]
        managers = sorted(key.fingerprint for key in chain.keyring.with_role(MANAGE))
        return cls(model, store, chain.root.digest, last.n, last.digest, managers)

    @classmethod
    def read(cls, values: Any, where: str) -> "Seen":
        """Raises InputError: it is no such record."""
        try:
            seen = cls(**values)
            if seen.format == _SEEN_FORMAT and isinstance(seen.n, int) and isinstance(seen.managers, list):
                return seen
        except TypeError:
            pass
        raise InputError(
            f"{where} is damaged: it says what was seen of a ledger. If you know why, remove it: the ledger is then "
            "believed as it is"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, chain: Chain, where: str) -> None:
        """Compare a ledger with what was seen of it.

        Args:
            chain: what it is now.
            where: what remembers it, for the message.

        Raises:
            BrokenLedger: it was cut, rewritten or exchanged since.
        """
        if chain.root is None:
            raise self._broken(f"it is gone: {where} remembers {self.n + 1} entries")
        if chain.root.digest != self.root:
            if self._is_followed_by(chain):
                return
            raise self._broken(
                f"it is another one than {where} remembers, and nobody who could change the keys of that one began it. "
                "If the old one was given up for good reasons, remove what remembers it"
            )
        if len(chain.entries) <= self.n:
            raise self._broken(
                f"its end was cut off: entry {self.n}, which {where} remembers, is not there "
                f"(it has {len(chain.entries)}). If the store was restored from an older copy, remove what remembers it"
            )
        if chain.entries[self.n].digest != self.digest:
            raise self._broken(f"entry {self.n} was rewritten: {where} remembers another one")

    def _is_followed_by(self, chain: Chain) -> bool:
        """Whether a ledger says that it follows this one, which was lost, and a key manager of this one says so."""
        assert chain.root is not None
        follows = chain.root.details.get("follows")
        says_so = isinstance(follows, dict) and follows.get("root") == self.root
        return says_so and chain.root.key in self.managers

    def _broken(self, what: str) -> BrokenLedger:
        return BrokenLedger(f"The ledger of {self.model!r} is broken: {what}.")


class Trust:
    """What this user and this workspace know of one store's ledgers.

    Args:
        store: where MLflow is, without credentials.
        ws: whose dass.keys to ask; None: nobody's.
    """

    def __init__(self, store: str, ws: Workspace | None = None) -> None:
        self.store = store
        self._ws = ws

    def check(self, model: str, chain: Chain, seen: Seen | None) -> None:
        """Compare a ledger with everything that is known of it, and remember how far it was read.

        Args:
            model: the registered model.
            chain: its ledger.
            seen: what this user had seen before that was read: others write meanwhile.

        Raises:
            BrokenLedger: it is not the one that is known.
            InputError: what is known cannot be read.
        """
        if chain.root is None and not chain.entries and seen is None:
            return
        if seen is not None:
            seen.check(chain, f"{_file(self.store, model)}")
        if chain.root is None:
            return
        self._check_root(model, chain)
        if seen is None or seen.root != chain.root.digest:
            self._tell_first_use(model, chain, seen)
        if seen is None or (seen.root, seen.n) != (chain.root.digest, chain.entries[-1].n):
            self.remember(model, chain)

    def seen(self, model: str) -> Seen | None:
        """What this user has seen of a ledger.

        Raises:
            InputError: the record is damaged.
        """
        path = _file(self.store, model)
        try:
            return Seen.read(read_json(path), str(path))
        except FileNotFoundError:
            return None
        except ValueError:
            raise InputError(f"{path} is damaged: it is not JSON") from None

    def remember(self, model: str, chain: Chain) -> None:
        """Note how far a ledger was read."""
        path = _file(self.store, model)
        try:
            path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(path, Seen.of(model, self.store, chain).as_json())
        except OSError as error:
            logger.warning(
                f"{path} cannot be written ({error.strerror}): what was seen of the ledger is not remembered"
            )

    def forget(self, model: str) -> None:
        """No longer expect a ledger: it was never used, and is deleted."""
        _file(self.store, model).unlink(missing_ok=True)

    def first_keys(self) -> list[Key] | None:
        """The keys that dass.keys lists; None: the workspace has no such file."""
        return None if self._ws is None else read_keys(self._ws)

    def _check_root(self, model: str, chain: Chain) -> None:
        expected = self.first_keys()
        assert chain.root is not None
        if expected is None:
            return
        began = [Key.read(each) for each in chain.root.details["keys"]]
        if {key.fingerprint: key.roles for key in began} != {key.fingerprint: key.roles for key in expected}:
            assert self._ws is not None
            raise BrokenLedger(
                f"The ledger of {model!r} is broken: it begins with the keys "
                f"{', '.join(key.told for key in began)}, and {self._ws.root / KEYS} lists "
                f"{', '.join(key.told for key in expected)}."
            )

    def _tell_first_use(self, model: str, chain: Chain, seen: Seen | None) -> None:
        assert chain.root is not None
        first = chain.keyring.keys[str(chain.root.key)]
        if seen is not None:
            logger.warning(
                f"The ledger of {model!r} is a new one, begun by {first.told}: the one that was seen before, "
                f"with {seen.n + 1} entries, is gone"
            )
        elif self.first_keys() is None and first.fingerprint != _own():
            logger.warning(
                f"First use of the ledger of {model!r}: it was begun by {first.told}, which is believed from now on "
                f"(remembered in {_file(self.store, model)})"
            )


def read_keys(ws: Workspace) -> list[Key] | None:
    """The keys of a workspace's dass.keys; None: it has none.

    Raises:
        InputError: the file is damaged.
    """
    return keys_of(ws.root / KEYS)


def keys_of(path: Path) -> list[Key] | None:
    """The keys of a dass.keys; None: there is no such file.

    Raises:
        InputError: it is damaged.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        raise InputError(f"{path} is damaged: it is not JSON. Take it from git again") from None
    try:
        if values["format"] != _KEYS_FORMAT or not values["keys"]:
            raise ValueError("another format")
        return [Key.read(each) for each in values["keys"]]
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no list of keys ({error}): expected what dass keys init writes") from None


def write_keys(ws: Workspace, keys: list[Key]) -> Path:
    """Write a workspace's dass.keys."""
    path = ws.root / KEYS
    write_json(path, {"format": _KEYS_FORMAT, "keys": [key.as_json() for key in keys]})
    return path


def trusted_folder() -> Path:
    """Where this user's memory of ledgers lies."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "dass" / "trusted"


def remembered(model: str, store: str, root: str) -> dict[str, Seen]:
    """What this user has seen of a ledger that came by another way than its store, by the file that remembers it.

    Args:
        model: the registered model.
        store: where it says that it lies.
        root: digest of the entry its list of keys begins with: wherever it lies, that is the same ledger.

    Raises:
        InputError: the record of that store and model is damaged. Others that are say nothing.
    """
    found = {}
    named = _file(store, model)
    for path in sorted(trusted_folder().glob("*.json")):
        try:
            seen = Seen.read(read_json(path), str(path))
        except (InputError, ValueError, OSError):
            if path == named:
                raise
            continue
        if path == named or seen.root == root:
            found[str(path)] = seen
    return found


def _file(store: str, model: str) -> Path:
    return trusted_folder() / f"{digest_of([store, model])[:32]}.json"


def _own() -> str | None:
    """Fingerprint of this user's key; None where it cannot be used."""
    try:
        return fingerprint(public_key())
    except InputError:
        return None
