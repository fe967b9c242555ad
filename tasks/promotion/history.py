"""`dass history` and `dass diff`: what there is, and what lies between two versions. No model is loaded."""

from typing import TYPE_CHECKING, Any

from tasks.promotion.champion import settled
from tasks.registry.checked import checked_version
from tasks.registry.ledger import HEAD, PENDING, Entry
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import EVALUATION, MANIFEST, MASKS, SETTINGS
from tasks.registry.versions import all_versions
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from rich.console import Group
    from rich.table import Table

_PROOFS = {"verified": "passed", "failed": "failed"}


def history(ws: Workspace, model: str) -> dict[str, Any]:
    """Every version of a model, newest first, and what the ledger says of each.

    Returns:
        {"model", "repaired": a line or None, "versions": [{"version", "aliases", "method", "pattern", "sparsity",
        "ratio", "tasks_mean", "when", "by", "commit", "proof", "events"}]}

    Raises:
        InputError: there is no such model.
        BrokenLedger: the ledger is not whole.
        TrackingError: MLflow failed.
    """
    with tracking(ws) as client:
        repaired, entries = settled(client, model, ws)
        aliases: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(model).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        about: dict[str, list[Entry]] = {}
        for entry in entries:
            about.setdefault(entry.version, []).append(entry)
        versions = [
            _row(
                made,
                sorted(aliases.get(str(made.version), [])),
                about.get(str(made.version), []),
            )
            for made in all_versions(client, model)
            if made.tags.get(HEAD) != PENDING
        ]
    return {"model": model, "repaired": repaired, "versions": versions}


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
        "events": [{"n": each.n, "event": each.event, "time": each.time, "actor": each.actor} for each in entries],
    }


_FIGURES = {"sparsity": "sparsity.mlp", "ratio": "ratio"}


def history_table(record: dict[str, Any]) -> "Table":
    """The history for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Versions of {escape(record['model'])}", title_justify="left")
    for heading in (
        "version",
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
    ):
        table.add_column(
            heading, justify="right" if heading in ("version", "sparsity", "ratio", "zero-shot") else "left"
        )
    for each in record["versions"]:
        table.add_row(
            each["version"],
            ", ".join(each["aliases"]),
            each["method"] or "",
            each["pattern"] or "",
            _shown(each["sparsity"], "{:.1%}"),
            _shown(each["ratio"], "{:.3f}"),
            _shown(each["tasks_mean"], "{:.3f}"),
            (each["when"] or "").replace("T", " ").partition(".")[0],
            escape(each["by"] or ""),
            (each["commit"] or "")[:8],
            each["proof"] or "not checked",
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def diff(ws: Workspace, model: str, before: str, after: str) -> dict[str, Any]:
    """What lies between two versions: settings, calibration data, figures, and how many mask bits moved.

    Returns:
        {"model", "before", "after": version numbers, "settings" and "figures": {key: [before, after]} of those that
        differ, "calibration" and "values" (new values of weights) likewise, "masks": [{"tensor", "moved", "share",
        "jaccard"}]}

    Raises:
        InputError: there is no such version, or the two are of different models.
        TrackingError: MLflow failed.
    """
    with tracking(ws) as client:
        pair = [checked_version(client, model, version, ws) for version in (before, after)]
        manifests, evaluations, settings = (
            [version.record(name) for version in pair] for name in (MANIFEST, EVALUATION, SETTINGS)
        )
        made = list(zip(manifests, [version.recovery for version in pair], strict=True))
        with pair[0].file(MASKS) as one, pair[1].file(MASKS) as other:
            from dass.masks.difference import compare_masks  # here: torch takes seconds
            from dass.masks.mask_file import MaskFile

            moved = compare_masks(MaskFile(one), MaskFile(other))
    return {
        "model": model,
        "before": pair[0].number,
        "after": pair[1].number,
        "settings": _changed(*({**each, "promote": {}} for each in settings)),  # what is asked, not what was made
        "calibration": _changed(*(manifest["calibration"] for manifest in manifests)),
        "figures": _changed(*evaluations),
        "values": _changed(
            *({"pruned": _values(manifest), "recovered": _values(recovery)} for manifest, recovery in made)
        ),
        "masks": [each.as_json() for each in sorted(moved, key=lambda each: _in_order(each.tensor))],
    }


def _values(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of new values of weights, as far as two versions can be told apart by it."""
    updates = record.get("updates") or {}
    return {"digest": updates.get("digest"), "tensors": len(updates.get("tensors", []))}


def _in_order(tensor: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in tensor.split(".")]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    before, after = flat(before), flat(after)
    keys = dict.fromkeys([*before, *after])
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def diff_tables(record: dict[str, Any]) -> "Group":
    """The differences for a terminal."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    names = (f"version {record['before']}", f"version {record['after']}")
    for what in ("settings", "calibration", "figures", "values"):
        if not record[what]:
            parts.append(f"{what}: the same")
            continue
        table = Table(what, *names, title_justify="left")
        for key, (before, after) in record[what].items():
            table.add_row(key, str(before), str(after))
        parts.append(table)
    moved = [each for each in record["masks"] if each["moved"]]
    if not moved:
        return Group(*parts, f"masks: the same in all {len(record['masks'])} matrices")
    table = Table("mask of", "bits moved", "share", "Jaccard of what is kept")
    for each in record["masks"]:
        table.add_row(each["tensor"], f"{each['moved']:,}", f"{each['share']:.2%}", f"{each['jaccard']:.4f}")
    return Group(*parts, table)
