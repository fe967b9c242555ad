"""`dass history`: every version, and what was decided about it by which rule and for which reason."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.promotion.champion import settled
from tasks.registry.ledger import HEAD, PENDING, Entry, champion_of
from tasks.registry.timeline import plain
from tasks.registry.tracking import reading
from tasks.registry.versions import all_versions
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import NARROW, Fitted, day, shown, table

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from rich.console import Group
    from rich.table import Table

_PROOFS = {"verified": "passed", "failed": "failed"}
_DECISIONS = ("promoted", "refused", "rolled_back")
_FIGURES = {"sparsity": "sparsity.mlp", "ratio": "ratio"}


def history(ws: Workspace, model: str, limit: int | None = None, since: datetime | None = None) -> dict[str, Any]:
    """Every version of a model, newest first, and what the ledger says of each.

    Args:
        ws: where.
        model: the registered model.
        limit: the newest so many versions, and the newest so many decisions.
        since: only what was registered or decided from then on.

    Returns:
        {"model", "repaired": a line or None, "champion": a version or None, "versions": [{"version", "aliases",
        "method", "pattern", "sparsity", "ratio", "tasks_mean", "when", "by", "commit", "proof", "events": [{"n",
        "event", "time", "actor", "details"}]}], "decisions": [{"n", "time", "actor", "version", "decision", "rules":
        those that did not hold, "reason", "previous"}]}

    Raises:
        InputError: there is no such model.
        BrokenLedger: the ledger is not whole.
        TrackingError: MLflow failed.
    """
    with reading(ws) as client:
        repaired, entries = settled(client, model, ws)
        aliases: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(model).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        about: dict[str, list[Entry]] = {}
        for entry in entries:
            about.setdefault(entry.version, []).append(entry)
        versions = [
            _row(made, sorted(aliases.get(str(made.version), [])), about.get(str(made.version), []))
            for made in all_versions(client, model)
            if made.tags.get(HEAD) != PENDING
        ]
    decisions = [_decision(entry, about[entry.version]) for entry in reversed(entries) if entry.event in _DECISIONS]
    return {
        "model": model,
        "repaired": repaired,
        "champion": champion_of(entries),
        "versions": [each for each in versions if _is_since(each["when"], since)][:limit],
        "decisions": [each for each in decisions if _is_since(each["time"], since)][:limit],
    }


def read_time(text: str) -> datetime:
    """A date, or a date with a time, as ISO 8601 has them; of this day and hour in UTC where no zone is named.

    Raises:
        InputError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"--since is {text[:50]!r}: expected a date such as 2026-11-26, or 2026-11-26T08:00, in UTC."
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _is_since(time: str | None, since: datetime | None) -> bool:
    return since is None or (time is not None and datetime.fromisoformat(time) >= since)


def _row(made: "ModelVersion", aliases: list[str], entries: list[Entry]) -> dict[str, Any]:
    proofs = [each for each in entries if each.event in _PROOFS]
    registered = next((each for each in entries if each.event == "registered"), None)
    said = {} if registered is None else registered.details
    return {
        "version": str(made.version),
        "aliases": aliases,
        **{name: said.get(name) for name in ("method", "pattern")},
        **{name: said.get("figures", {}).get(figure) for name, figure in _FIGURES.items()},
        "tasks_mean": said.get("tasks_mean"),
        "when": None if registered is None else registered.time,
        "by": None if registered is None else registered.actor,
        "commit": said.get("git", {}).get("commit"),
        "proof": _PROOFS[proofs[-1].event] if proofs else None,
        "events": [
            {"n": each.n, "event": each.event, "time": each.time, "actor": each.actor, "details": each.details}
            for each in entries
        ],
    }


def _decision(entry: Entry, about: list[Entry]) -> dict[str, Any]:
    """A decision, with the rules that did not hold when it was made."""
    gates = [each for each in about if each.event == "gate" and each.n < entry.n]
    asked = gates[-1].details.get("rules", []) if gates and entry.event != "rolled_back" else []
    is_forced = entry.event == "promoted" and bool(entry.details.get("forced"))
    return {
        "n": entry.n,
        "time": entry.time,
        "actor": entry.actor,
        "version": entry.version,
        "decision": "promoted by force" if is_forced else entry.event.replace("_", " "),
        "rules": [rule for rule in asked if not rule["passed"]],
        "reason": entry.details.get("reason"),
        "previous": entry.details.get("previous"),
    }


def history_tables(record: dict[str, Any], wide: bool = False) -> Fitted:
    """The history for a terminal; `wide` adds what else is known of each version."""

    def build(width: int) -> "Group":
        from rich.console import Group

        versions = _versions_table(record, width, wide)
        return Group(versions, "", _decisions_table(record, width)) if record["decisions"] else Group(versions)

    return Fitted(build)


def _versions_table(record: dict[str, Any], width: int, wide: bool) -> "Table":
    from rich.markup import escape

    number = "v" if width < NARROW else "version"
    columns: tuple[str, ...] = (number, "alias", "method", "pattern", "ratio", "when", "proof")
    if wide:
        columns = (
            number,
            "alias",
            "method",
            "pattern",
            "sparsity",
            "ratio",
            "zero-shot",
            "when",
            "by",
            "commit",
            "proof",
        )
    made = table(
        width,
        *columns,
        title=f"Versions of {escape(plain(record['model']))}",
        right=(number, "sparsity", "ratio", "zero-shot"),
        whole=("when", "proof", "commit"),
    )
    for each in record["versions"]:
        cells = {
            number: each["version"],
            "alias": escape(plain(", ".join(each["aliases"]))),
            "method": each["method"] or "",
            "pattern": each["pattern"] or "",
            "sparsity": _figure(each["sparsity"], "{:.1%}"),
            "ratio": _figure(each["ratio"], "{:.3f}"),
            "zero-shot": _figure(each["tasks_mean"], "{:.3f}"),
            "when": (each["when"] or "").replace("T", " ")[:16] if wide else day(each["when"], width),
            "by": escape(plain(each["by"] or "")),
            "commit": (each["commit"] or "")[:8],
            "proof": each["proof"] or "none",
        }
        made.add_row(*(cells[name] for name in columns))
    return made


def _decisions_table(record: dict[str, Any], width: int) -> "Table":
    from rich.markup import escape

    made = table(width, "entry", "when", "version", "decision", "why", title="Decisions", right=("entry", "version"))
    for each in record["decisions"]:
        rules = [_broken(rule) for rule in each["rules"]]
        why = "; ".join([*rules, *([each["reason"]] if each["reason"] else [])])
        held = "" if each["decision"] != "promoted" else "every rule held"
        when = day(each["time"], width)
        made.add_row(str(each["n"]), when, each["version"], each["decision"], escape(plain(why or held)))
    return made


def _broken(rule: dict[str, Any]) -> str:
    """A rule that did not hold: what was asked, and what was found."""
    if type(rule["value"]) in (int, float):
        return f"{rule['rule']} is {shown(float(rule['value']))}, limit {shown(float(rule['limit']))}"
    return f"{rule['rule']}: {rule['told'] or 'does not hold'}"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
