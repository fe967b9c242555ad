"""Which version is the champion: the ledger decides, and the alias follows it.

The ledger's entry is the commit. What comes after it (the version's tags, the alias last) can be done again by anyone:
`settle` does what a killed process has left undone. Two processes that switch at once write one entry each, one behind
the other; each then points the alias at whatever the ledger names, and looks again until both agree.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import canonical_json
from tasks.registry.chain import Chain
from tasks.registry.checked import CHAMPION, ForeignChampion
from tasks.registry.ledger import CROWNINGS, HEAD, Entry, Ledger, Overtaken, champion_of, patiently
from tasks.registry.ledger_run import write_twice
from tasks.registry.tracking import code_of, is_denied
from tasks.registry.versions import all_versions
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "ALIAS",
    "DECISION",
    "ForeignChampion",
    "RolledBack",
    "champion_of",
    "check_alias",
    "crown",
    "roll_back",
    "settle",
    "tag_decision",
]

ALIAS = CHAMPION
"""The version in production."""
DECISION = "promotion"
"""The version's tag that holds the last decision about it: JSON of event, time, reason, entry and digest."""

_DECISIONS = (*CROWNINGS, "refused")
_LONGEST_REASON = 200


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Attributes:
        entry: the ledger's entry of it.
        told: what was repaired first, as one line; None when all was well.
    """

    entry: Entry
    told: str | None


def settle(client: "MlflowClient", model: str, ws: Workspace | None = None) -> str | None:
    """Check the ledger, and finish what a killed promotion or rollback has left undone.

    Returns:
        What was repaired, as one line; None when all was well.

    Raises:
        As `settled`.
    """
    return settled(client, model, ws)[0]


def settled(client: "MlflowClient", model: str, ws: Workspace | None = None) -> tuple[str | None, list[Entry]]:
    """As `settle`, and the ledger's entries: repairing writes none.

    Args:
        client: MLflow.
        model: registered model's name.
        ws: as for `Ledger.open`.

    Raises:
        InputError: there is no such registered model.
        BrokenLedger: the ledger is not what was written. Nothing was changed.
        ForeignChampion: the alias was set by hand. Nothing was changed.
    """
    ledger = Ledger.open(client, model, ws)
    entries = ledger.entries()
    ledger.check_heads(entries)
    check_alias(client, ledger, entries)
    try:
        return _finish(client, ledger, entries)[1], entries
    except Exception as error:
        if not is_denied(error):
            raise
        told = f"Tags or alias of {model!r} are behind the ledger, which counts; this account may not put them right."
        return told, entries


def check_alias(client: "MlflowClient", ledger: Ledger, entries: list[Entry]) -> None:
    """Raise ForeignChampion when the alias is on a version that the ledger never promoted."""
    foreign = _foreign(client, ledger, entries)
    if foreign is not None:
        raise ForeignChampion(_put_right(ledger.model, foreign, champion_of(entries)))


def crown(
    client: "MlflowClient",
    ledger: Ledger,
    version: str,
    manifest: str,
    event: str,
    decide: Callable[[Chain], dict[str, Any] | None],
) -> Entry | None:
    """Make the version the champion, if it still deserves it when the ledger's entry is written.

    `settle` comes before: an alias that was set by hand is overwritten here.

    Args:
        client: MLflow.
        ledger: of the version's model.
        version: its number; it exists.
        manifest: sha256 of its manifest.
        event: "promoted" or "rolled_back".
        decide: gets the ledger and returns the new entry's details, or None: it does not become the champion.
            It is asked again whenever there is another champion than it was told of. It may record entries itself.
            "previous", the champion before, is added to the details.

    Returns:
        The entry, or None when `decide` said no. A version crowned at the same time may have become the champion since.
    """
    details: dict[str, Any] | None = None
    ground: tuple[Entry | None] | None = None  # what the decision rests on: the entry that made the present champion
    for _ in patiently(f"{ledger} is written by others all the time"):
        chain = ledger.chain()
        present = _crowning(chain.entries)
        if ground != (present,):
            ledger.check_allowed(event, chain)
            ground, details = (present,), decide(chain)
            if details is None:
                return None
            chain = ledger.chain()  # deciding takes time, and `decide` may have recorded something
            if _crowning(chain.entries) != present:
                continue
        assert details is not None
        previous = present.version if present else None
        try:
            entry = ledger.append(event, version, manifest, {**details, "previous": previous}, behind=chain)
        except Overtaken:
            continue
        entry = ledger.entries()[entry.n]  # with its actor
        tag_decision(client, entry)
        _point(client, ledger)
        return entry
    raise AssertionError("patiently() raises")


def roll_back(
    client: "MlflowClient",
    model: str,
    to: str | None,
    reason: str,
    check: Callable[[str], None] = lambda _: None,
    ws: Workspace | None = None,
) -> RolledBack:
    """Make an earlier champion the champion again.

    Going back twice goes back two: the target is the champion before the present one, not the one just left. A rollback
    that was killed behind its entry is finished, not done a second time; so no `settle` before, which this does itself.
    A named target also puts right an alias that was set by hand.

    Args:
        client: MLflow.
        model: registered model's name.
        to: number of the version to go back to; None: the champion before the present one.
        reason: why, for the ledger.
        check: gets the target's number before anything is written, and raises if it must not be the champion.
        ws: as for `Ledger.open`.

    Raises:
        InputError: no such target, one that never was the champion, or the champion changed meanwhile.
        BrokenLedger, ForeignChampion: as `settle`.
    """
    if not reason.strip():
        raise InputError('A rollback needs a reason, which goes to the ledger. Add: --reason "..."')
    ledger = Ledger.open(client, model, ws)
    chain = ledger.chain()
    ledger.check_allowed("rolled_back", chain)
    entries = chain.entries
    ledger.check_heads(entries)
    foreign = _foreign(client, ledger, entries)
    told = None
    if foreign is None:
        moved, told = _finish(client, ledger, entries)
        interrupted = _crowning(entries)
        if moved and interrupted and interrupted.event == "rolled_back" and to in (None, interrupted.version):
            return RolledBack(interrupted, told)
    elif to is None:
        raise ForeignChampion(_put_right(model, foreign, champion_of(entries)))
    target = _target(entries, model, to, foreign)
    if _tags(client, model, target.version) is None:
        raise InputError(
            f"Version {target.version} of {model!r} was deleted from MLflow. Name another champion: --to VERSION"
        )
    check(target.version)
    asked = _crowning(entries)

    def decide(now: Chain) -> dict[str, Any]:
        if to is None and _crowning(now.entries) != asked:
            raise InputError(
                f"Version {now.champion} of {model!r} became the champion meanwhile; nothing was rolled back. "
                "Look at it (dass history), then roll back again."
            )
        return {"reason": reason, **({} if foreign is None else {"foreign": foreign})}

    entry = crown(client, ledger, target.version, target.manifest, "rolled_back", decide)
    assert entry is not None
    return RolledBack(entry, told)


def tag_decision(client: "MlflowClient", entry: Entry) -> None:
    """Write the decision to its version's tags."""
    write_twice(lambda: client.set_model_version_tag(entry.model, entry.version, DECISION, _short(entry)))


def _short(entry: Entry) -> str:
    reason = entry.details.get("reason")
    if reason is not None and len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]}…"
    said = {"event": entry.event, "time": entry.time, "reason": reason, "entry": entry.n, "digest": entry.digest}
    return canonical_json(said)


def _crowning(entries: list[Entry]) -> Entry | None:
    """The entry that made the present champion."""
    return next((entry for entry in reversed(entries) if entry.event in CROWNINGS), None)


def _champions(entries: list[Entry]) -> list[str]:
    """The champions that lead to the present one, oldest first: going back drops those that were left."""
    line: list[str] = []
    for entry in entries:
        if entry.event == "rolled_back" and entry.version in line:
            while line[-1] != entry.version:
                line.pop()
        elif entry.event in CROWNINGS and line[-1:] != [entry.version]:
            line.append(entry.version)
    return line


def _target(entries: list[Entry], model: str, to: str | None, foreign: str | None) -> Entry:
    """The last entry that made the version to go back to the champion."""
    crowned = {entry.version: entry for entry in entries if entry.event in CROWNINGS}
    champion, line = champion_of(entries), _champions(entries)
    if champion is None:
        raise InputError(f"No version of {model!r} has ever been the champion. Run: dass promote VERSION")
    if to is None:
        if len(line) < 2:
            raise InputError(f"There is no champion of {model!r} before version {champion}. Name one: --to VERSION")
        return crowned[line[-2]]
    if to not in crowned:
        known = ", ".join(sorted(crowned, key=int))
        raise InputError(
            f"Version {to} of {model!r} was never the champion; those were: {known}. Run: dass promote {to}"
        )
    if to == champion and foreign is None:
        raise InputError(f"Version {to} of {model!r} is the champion already; there is nothing to roll back")
    return crowned[to]


def _tags(client: "MlflowClient", model: str, version: str) -> dict[str, str] | None:
    """A version's tags; None when it was deleted."""
    try:
        return dict(client.get_model_version(model, version).tags)
    except Exception as error:
        if code_of(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _alias(client: "MlflowClient", model: str) -> str | None:
    version = client.get_registered_model(model).aliases.get(ALIAS)
    return None if version is None else str(version)


def _foreign(client: "MlflowClient", ledger: Ledger, entries: list[Entry]) -> str | None:
    """The version that has the alias though the ledger never made it the champion."""
    alias = _alias(client, ledger.model)
    if alias is None or _was_crowned(alias, entries):
        return None
    return None if _was_crowned(alias, ledger.entries()) else alias  # a promotion may have come in between


def _was_crowned(version: str, entries: list[Entry]) -> bool:
    return any(entry.version == version for entry in entries if entry.event in CROWNINGS)


def _put_right(model: str, foreign: str, champion: str | None) -> str:
    found = f"The alias {ALIAS!r} of {model!r} is on version {foreign}, which the ledger never promoted"
    if champion is None:
        return f"{found}; nothing was promoted yet. Remove the alias in MLflow, then run: dass promote {foreign}"
    return f'{found}; its champion is version {champion}. Run: dass rollback --to {champion} --reason "..."'


def _point(client: "MlflowClient", ledger: Ledger) -> bool:
    """Put the alias on the champion that the ledger names; returns whether it had to be moved.

    It is looked at again after each move: a slower process may just have put it on the champion before.
    """
    moved = False
    for _ in patiently(f"{ledger} is written by others all the time"):
        champion = champion_of(ledger.entries())
        if champion is None or _alias(client, ledger.model) == champion:
            break
        write_twice(lambda to=champion: client.set_registered_model_alias(ledger.model, ALIAS, to))  # type: ignore[misc]
        moved = True
    return moved


def _finish(client: "MlflowClient", ledger: Ledger, entries: list[Entry]) -> tuple[bool, str | None]:
    """Bring tags and alias to what the ledger says; the alias comes last.

    Returns:
        Whether the alias was moved, and what is to be told.
    """
    model, crowning = ledger.model, _crowning(entries)
    lagging = _tag_behind(client, ledger, entries)
    if crowning is not None:
        was = _alias(client, model)
        if was is None and _tags(client, model, crowning.version) is None:
            return False, (
                f"The champion of {model!r}, version {crowning.version}, was deleted from MLflow: "
                "there is none until another is promoted."
            )
        if _point(client, ledger):
            return True, (
                f"Repaired: the alias {ALIAS!r} of {model!r} was {f'on version {was}' if was else 'missing'}; it is on "
                f"version {crowning.version} again, as entry {crowning.n} of the ledger says "
                f"({crowning.event.replace('_', ' ')} by {crowning.actor})."
            )
    return (
        False,
        f"Repaired: tags of version {', '.join(lagging)} of {model!r} were behind the ledger." if lagging else None,
    )


def _tag_behind(client: "MlflowClient", ledger: Ledger, entries: list[Entry]) -> list[str]:
    """Set the tags that a killed process has not; returns the versions whose were behind."""
    found = {str(made.version): dict(made.tags) for made in all_versions(client, ledger.model)}
    decisions = {entry.version: entry for entry in entries if entry.event in _DECISIONS}
    lagging = []
    for version, last in {entry.version: entry for entry in entries if entry.version}.items():
        tags = found.get(version)
        if tags is None:
            continue
        behind = _number(tags.get(HEAD, "").partition(" ")[0]) < last.n
        if behind:
            ledger.tag_head(version)
        decision = decisions.get(version)
        if decision is not None and _decided(tags) < decision.n:
            tag_decision(client, decision)
            behind = True
        if behind:
            lagging.append(version)
    return lagging


def _decided(tags: dict[str, str]) -> int:
    """Number of the entry that the version's last decision names."""
    try:
        return _number(str(json.loads(tags[DECISION])["entry"]))
    except (KeyError, TypeError, ValueError):
        return -1


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
