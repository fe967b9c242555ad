"""The lines of a ledger checked as a whole: nothing missing, moved or edited, each signed by a key that might.

Pure: lines in, entries out. Whether these are the lines that were seen before is asked in `tasks.registry.trust`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tasks.registry.entry import CROWNINGS, NOTHING, Entry, parse
from tasks.registry.keyring import Keyring


class BrokenLedger(Exception):
    """The ledger is not what was written. The message is one line: which entry, and what is wrong with it."""


@dataclass(frozen=True)
class Chain:
    """A ledger's entries, which are whole.

    Attributes:
        entries: oldest first; each one's actor is its key's name.
        keyring: the keys behind the last of them.
        root: the entry that the list of keys begins with; None: there is no entry yet.
    """

    entries: list[Entry]
    keyring: Keyring
    root: Entry | None

    @property
    def champion(self) -> str | None:
        return champion_of(self.entries)

    def registered(self, version: str) -> Entry | None:
        """The entry that registered a version."""
        found = [entry for entry in self.entries if (entry.event, entry.version) == ("registered", version)]
        return found[-1] if found else None


def checked_chain(model: str, lines: Sequence[str]) -> Chain:
    """Check a ledger's lines, oldest first.

    Args:
        model: the registered model they must be about.
        lines: one an entry.

    Raises:
        BrokenLedger: one is not what was written.
    """
    chain = _checked(model, tuple(lines))
    return replace(chain, entries=list(chain.entries))


@lru_cache(maxsize=8)  # one command reads the same ledger twenty times
def _checked(model: str, lines: tuple[str, ...]) -> Chain:
    entries = [_read(model, n, line) for n, line in enumerate(lines)]
    # From the end: a line that is still what the one behind it says can be believed about the one before it.
    for entry, following in zip(reversed(entries[:-1]), reversed(entries[1:]), strict=True):
        if following.before != entry.digest:
            raise _broken(model, f"entry {entry.n} was edited: entry {following.n} names another digest")
    if entries and entries[0].before != NOTHING:
        raise _broken(model, "entry 0 was edited: it names an entry before it")
    keyring, named = Keyring(), []
    for entry in entries:
        keyring = _signed(model, entry, keyring)
        named.append(replace(entry, actor=keyring.keys[entry.key].name))
    return Chain(named, keyring, named[0] if named else None)


def champion_of(entries: Sequence[Entry]) -> str | None:
    """The version that was promoted or rolled back to last; None before the first."""
    return next((entry.version for entry in reversed(entries) if entry.event in CROWNINGS), None)


def _read(model: str, n: int, line: str) -> Entry:
    try:
        entry = parse(line)
    except ValueError:
        raise _broken(model, f"entry {n} was edited: it is no line of a ledger") from None
    if entry.n != n:
        raise _broken(model, f"entry {n} holds the line of entry {entry.n}: lines were moved")
    if entry.model != model:
        raise _broken(model, f"entry {n} is about the model {entry.model!r}: a model with a ledger keeps its name")
    return entry


def _signed(model: str, entry: Entry, keyring: Keyring) -> Keyring:
    """Check one entry's signature against the keys before it (the first one's against its own); the keys behind it."""
    try:
        after = keyring.after(entry)
    except (ValueError, LookupError, TypeError) as error:
        raise _broken(model, f"entry {entry.n} ({entry.event}) changes the keys as it cannot be: {error}") from None
    if entry.n == 0 and entry.event != "keys_started":
        raise _broken(model, f"entry {entry.n} ({entry.event}) is signed, and no list of keys comes before it")
    holders = after if entry.n == 0 else keyring
    if told := holders.lacks(entry.key, entry.event):
        raise _broken(model, f"entry {entry.n} ({entry.event}) was not written by one who may: {told}")
    if not entry.is_signed_by(holders.keys[entry.key].public):
        raise _broken(model, f"entry {entry.n} ({entry.event}) was edited or forged: its signature does not hold")
    return after


def _broken(model: str, what: str) -> BrokenLedger:
    return BrokenLedger(f"The ledger of {model!r} is broken: {what}.")
