"""`dass diff`: what lies between two versions. No model is loaded."""

from typing import TYPE_CHECKING, Any

from tasks.registry.checked import checked_version
from tasks.registry.timeline import plain
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import EVALUATION, MANIFEST, MASKS, SETTINGS
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import Fitted, change, shown, table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from dass.masks.difference import MaskDifference


def diff(ws: Workspace, model: str, before: str, after: str) -> dict[str, Any]:
    """What lies between two versions: settings, calibration data, figures, and how many mask bits moved.

    Returns:
        {"model", "before", "after": version numbers, "settings" and "figures": {key: [before, after]} of those that
        differ, "calibration" and "values" (new values of weights) likewise, "masks": [{"tensor", "moved", "weights",
        "share", "jaccard"}] a matrix, "layers" the same a layer, "moved" the same of all}

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

            moved = sorted(compare_masks(MaskFile(one), MaskFile(other)), key=lambda each: _in_order(each.tensor))
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
        "masks": [each.as_json() for each in moved],
        **_counted_together(moved),
    }


def _counted_together(moved: list["MaskDifference"]) -> dict[str, Any]:
    from dass.masks.difference import together

    layers: dict[str, list[MaskDifference]] = {}
    for each in moved:
        number = next((part for part in each.tensor.split(".") if part.isdecimal()), "")
        layers.setdefault(f"layer {number}".rstrip(), []).append(each)
    return {
        "layers": [together(name, found).as_json() for name, found in layers.items()],
        "moved": together("all", moved).as_json(),
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


def diff_tables(record: dict[str, Any]) -> Fitted:
    """The differences for a terminal: rounded, and how far each number moved."""
    return Fitted(lambda width: _tables(record, width))


def _tables(record: dict[str, Any], width: int) -> "Group":
    from rich.console import Group
    from rich.markup import escape

    parts: list[Any] = []
    for what in ("settings", "calibration", "figures", "values"):
        parts += [_table(what, record, width)] if record[what] else [f"{what}: the same"]
        if long := [key for key, pair in record[what].items() if not _is_short(pair)]:
            parts.append(f"Also different, with --json: {escape(plain(', '.join(long)))}")
        parts.append("")
    return Group(*parts, *_mask_parts(record, width))


def _table(what: str, record: dict[str, Any], width: int) -> "Table":
    from rich.markup import escape

    names = (f"version {record['before']}", f"version {record['after']}")
    right = [*names, "change"] if what == "figures" else ["change"]
    made = table(width, what, *names, "change", right=right)
    for key, (before, after) in record[what].items():
        if _is_short((before, after)):
            cells = (escape(plain(text)) for text in (key, shown(before), shown(after)))
            made.add_row(*cells, change(before, after))
    return made


def _is_short(pair: Any) -> bool:
    """Whether both values fit into a cell."""
    lists = [each for each in pair if isinstance(each, list)]
    return all(len(each) <= 3 and not any(isinstance(part, list | dict) for part in each) for each in lists)


def _mask_parts(record: dict[str, Any], width: int) -> list[Any]:
    moved = record["moved"]
    if not moved["moved"]:
        return [f"masks: the same in all {len(record['masks'])} matrices"]
    made = table(width, "masks", "bits moved", "share", "kept by both", right=("bits moved", "share", "kept by both"))
    for each in [*record["layers"], moved]:
        made.add_row(each["tensor"], f"{each['moved']:,}", f"{each['share']:.2%}", f"{each['jaccard']:.2%}")
    return [made, "kept by both: the weights that both keep, as a share of those that either keeps"]
