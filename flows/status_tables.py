"""What `dass status` shows on a terminal: a line each for what stands, tables for runs, what is stuck, and the disk."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.status import is_due
from tasks.registry.timeline import plain
from tasks.workspace.progress import duration
from tasks.workspace.sizes import in_words
from tasks.workspace.tables import NARROW, Fitted, table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_LONGEST = 120  # of what a run says of its end


def status_tables(record: dict[str, Any]) -> Fitted:
    """The record of `flows.status.status` for a terminal."""

    def build(width: int) -> "Group":
        from rich.console import Group

        parts: list[Any] = [_standing(record, width)]
        parts += ["", _runs(record["runs"], width)] if record["runs"] else []
        parts += ["", _stuck(record["stuck"], width)] if record["stuck"] else []
        parts += ["", _disk(record["disk"], width)] if record["disk"] else []
        return Group(*parts)

    return Fitted(build)


def _standing(record: dict[str, Any], width: int) -> "Table":
    from rich.markup import escape

    model, due = record["model"], record["next"]
    lines = {"workspace": record["workspace"], "MLflow": record["store"]}
    for each in record["working"]:
        lines["working"] = f"in the {each['where']}: {each['told']}"
    if model is not None:
        entries = f"{model['versions']} versions, {model['entries']} entries in the ledger"
        lines["model"] = f"{model['model']}: {entries}"
        lines["champion"] = _version(model["champion"]) or "none yet: dass promote"
        if model["newest"] and model["newest"]["version"] != (model["champion"] or {}).get("version"):
            lines["newest"] = _version(model["newest"]) or ""
        if model["told"]:
            lines["alias"] = model["told"]
    elif not {"model", "MLflow"} & record["unknown"].keys():
        lines["model"] = "nothing is registered yet: dass run"
    lines["next run"] = "none is planned: dass serve" if due is None else _due(due)
    for part, why in record["unknown"].items():
        lines[f"{part} ?"] = why
    made = table(width, "", "", title="Status")
    for name, told in lines.items():
        made.add_row(name, escape(plain(told)))
    return made


def _version(of: dict[str, Any] | None) -> str | None:
    if of is None:
        return None
    proof = of["proof"]
    proved = (
        "never verified"
        if proof is None
        else f"{'verified' if proof['passed'] else 'NOT PROVED'} {_when(proof['time'])}"
    )
    ratio = "" if of["ratio"] is None else f", ratio {of['ratio']:.3f}"
    how = "registered" if of["how"] is None else of["how"]
    kind = " ".join(filter(None, (of["method"], of["pattern"])))
    return f"version {of['version']} ({kind}{ratio}), {how} {_when(of['since'])} by {of['by']}; {proved}"


def _due(due: dict[str, Any]) -> str:
    at = "" if due["at"] is None else f"{_when(due['at'])}{', at work or waiting' if is_due(due['at']) else ''}: "
    return f"{at}{due['told']}, by {due['by']}"


def _when(time: str) -> str:
    """In this machine's zone, to the minute."""
    return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}"


def _runs(runs: list[dict[str, Any]], width: int) -> "Table":
    from rich.markup import escape

    columns = ("began", "run", "by", "ended", "took", "made", *(() if width < NARROW else ("why",)))
    made = table(width, *columns, title="Last runs", right=("took",), whole=("began", "by"))
    for each in runs:
        cells = {
            "began": _when(each["began"])[5:],
            "run": f"{each['flow']}: {each['name']}" if each["name"] != each["flow"] else each["flow"],
            "by": each["by"],
            "ended": each["state"],
            "took": duration(each["seconds"]),
            "made": f"version {each['version']}" if each["version"] else "",
            "why": (each["message"] or "")[:_LONGEST],
        }
        made.add_row(*(escape(plain(cells[name])) for name in columns))
    return made


def _stuck(stuck: list[dict[str, str]], width: int) -> "Table":
    from rich.markup import escape

    made = table(width, "what", "found", "next", title="Stuck", whole=("what",))
    for each in stuck:
        made.add_row(*(escape(plain(each[name])) for name in ("what", "told", "next")))
    return made


def _disk(disk: list[dict[str, Any]], width: int) -> "Table":
    from rich.markup import escape

    title = "Disk (dass gc --dry-run shows what nothing needs)"
    made = table(width, "what", "size", "files", "where", title=title, right=("size", "files"), whole=("what",))
    for each in sorted(disk, key=lambda each: -int(each["bytes"])):
        made.add_row(each["what"], in_words(each["bytes"]), f"{each['files']:,}", escape(plain(each["where"])))
    return made
