"""A checked ledger told for a terminal: who did what when, an entry a line. Every text in it may be anybody's."""

from typing import TYPE_CHECKING, Any

from tasks.registry.chain import Chain
from tasks.registry.entry import Entry
from tasks.workspace.tables import NARROW, Fitted, day, table

if TYPE_CHECKING:
    from rich.table import Table


def timeline(model: str, chain: Chain) -> Fitted:
    """The table of a ledger."""

    def build(width: int) -> "Table":
        from rich.markup import escape

        columns = ("n", "time", "actor", "event", "version", "", "signature")
        made = table(width, *columns, title=f"History of {escape(plain(model))}", right=("n", "version"))
        for entry in chain.entries:
            time = day(entry.time, width) if width < NARROW else entry.time.replace("T", " ").partition(".")[0]
            texts = (time, entry.actor or "", entry.event, entry.version, told(entry))
            holds = f"holds ({entry.key[:8]})"  # a chain has no other ones
            made.add_row(str(entry.n), *(escape(plain(text)) for text in texts), holds)
        return made

    return Fitted(build)


def told(entry: Entry) -> str:
    """What there is to say about an entry, in a few words and with the whole reason."""
    try:
        parts = _PARTS[entry.event](entry.details)
        key = [] if entry.version else [f"key {entry.manifest[:16]}"]
        return "; ".join(part for part in [*parts, *key] if part)
    except (LookupError, TypeError, ValueError, AttributeError):  # signed, and still of another shape than we write
        return ""


def plain(text: str) -> str:
    """A text that can do nothing to a terminal: what cannot be printed is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _registered(said: dict[str, Any]) -> list[str]:
    figures = said.get("figures", {})
    return [
        " ".join(str(said[name]) for name in ("method", "pattern") if name in said),
        f"ratio {figures['ratio']:.3f}" if "ratio" in figures else "",
    ]


def _gate(said: dict[str, Any]) -> list[str]:
    failed = [str(rule["rule"]) for rule in said["rules"] if not rule["passed"]]
    return ["every rule holds" if said["passed"] else f"does not hold: {', '.join(failed)}"]


def _crowned(said: dict[str, Any]) -> list[str]:
    return [
        "forced" if said.get("forced") else "",
        str(said["reason"]) if said.get("reason") else "",
        f"before: version {said['previous']}" if said.get("previous") else "",
    ]


def _failed(said: dict[str, Any]) -> list[str]:
    return [f"{name}: {why}" for name, passed, why in said["steps"] if passed is False]


def _key(said: dict[str, Any]) -> list[str]:
    return [f"{said['key']['name']}: {', '.join(said['key']['roles'])}"]


_PARTS = {
    "registered": _registered,
    "gate": _gate,
    "promoted": _crowned,
    "rolled_back": _crowned,
    "refused": lambda said: [", ".join(map(str, said["rules"]))],
    "verified": lambda said: [f"{len(said['steps'])} steps"],
    "failed": _failed,
    "published": lambda said: [f"{said['repo']}@{said['revision']}", f"commit {said['commit'][:10]}"],
    "keys_started": lambda said: [f"{key['name']}: {', '.join(key['roles'])}" for key in said["keys"]],
    "key_added": _key,
    "key_rotated": _key,
    "key_revoked": lambda said: [str(said["name"]), str(said["reason"])],
}
