"""`dass show`: what a workspace's result is, or a registered version, as a record and as tables."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import read_json
from tasks.registry.bom import told as bom_told
from tasks.registry.card import described, more_figures, trained
from tasks.registry.checked import CHAMPION, checked_version
from tasks.registry.entry import Entry
from tasks.registry.ledger import Ledger
from tasks.registry.ledger_run import find_model
from tasks.registry.place import database
from tasks.registry.result import layer_scores, scores_told, tasks_told
from tasks.registry.tracking import is_embedded, reading, tracking_uri
from tasks.registry.version_folder import BOM, EVALUATION, MANIFEST
from tasks.registry.versions import version_numbered
from tasks.sources.calibrated_on import told as calibrated_on
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import load_settings
from tasks.workspace.tables import NARROW, Fitted, table

_PROJECTIONS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_LEGEND = {
    "gate": "gate, up, down: share of zeros",
    "error": "error: ‖pruned − dense‖ / ‖dense‖ of the MLP's output",
    "fitted": "fitted: the same of the windows that the re-fit saw",
    "held": "held: of those held back from it",
    "norm": "norm: median ‖z‖ of its neurons",
    "2:4": "2:4: the matrices that a 2:4 kernel can run",
}
"""Column -> what it shows."""

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from rich.console import Group
    from rich.table import Table


def show(workspace: Workspace, version: str | None = None) -> dict[str, Any]:
    """Everything there is to say about one result.

    Args:
        workspace: where.
        version: a registered version's number or alias; None is the result in the workspace's artifacts.

    Returns:
        {"settings", "evaluation", "tasks", "base", "calibration", "engine", "versions", "masks", "fingerprint",
        "layers", "recovery", "registered": None or {"model", "version", "aliases", "run_id", "tracking_uri", "entry":
        what the ledger says of it}, "bom": bom.cdx.json of a version, or None}

    Raises:
        InputError: there is no result, or no such version.
        BrokenLedger, ForeignChampion, SignatureError: the version is not what the ledger says.
        TrackingError: MLflow failed.
    """
    model = load_settings(workspace.params).register_.model
    if version is not None:
        return _registered_version(workspace, model, version)
    try:
        manifest = read_json(workspace.masks / "manifest.json")
        recovery = read_json(workspace.recovered / "recovery.json")
        evaluation, tasks = (read_json(workspace.metrics / name) for name in ("evaluation.json", "tasks.json"))
    except FileNotFoundError as error:
        raise InputError(f"No {error.filename}: there is no result yet. Run: dass run") from None
    return _record(manifest, evaluation, tasks, recovery, _newest_version(workspace, model, manifest))


def _newest_version(workspace: Workspace, model: str, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The newest version with these masks of this base. Not by settings: params.yaml may be edited by now."""
    if is_embedded(workspace) and not database(workspace).exists():
        return None  # and asking would make one
    wanted = (manifest["masks"]["digest"], manifest["base"]["digest"])
    with reading(workspace) as client:
        if find_model(client, model) is None:
            return None
        chain = Ledger.open(client, model, workspace).chain()
        for entry in reversed(chain.entries):
            if entry.event == "registered" and (entry.details.get("masks"), entry.details.get("base")) == wanted:
                made = version_numbered(client, model, entry.version)
                if made is not None:
                    return _registered(workspace, made, entry, chain.champion)
    return None


def _registered_version(workspace: Workspace, model: str, version: str) -> dict[str, Any]:
    with reading(workspace) as client:
        checked = checked_version(client, model, version, workspace)
        manifest, evaluation = (checked.record(name) for name in (MANIFEST, EVALUATION))
        registered = _registered(workspace, checked.made, checked.entry, checked.chain.champion)
        bom = checked.record(BOM) if BOM in checked.signed else None
        return {**_record(manifest, evaluation, checked.tasks, checked.recovery, registered), "bom": bom}


def _registered(workspace: Workspace, made: "ModelVersion", entry: Entry, champion: str | None) -> dict[str, Any]:
    """What the ledger says of a version; of MLflow's own record only what decides nothing."""
    aliases = {alias for alias in made.aliases if alias != CHAMPION}
    if champion == entry.version:
        aliases.add(CHAMPION)
    return {
        "model": made.name,
        "version": entry.version,
        "aliases": sorted(aliases),
        "run_id": made.run_id,
        "tracking_uri": shown_address(tracking_uri(workspace)),
        "entry": {"n": entry.n, "time": entry.time, "by": entry.actor, "key": entry.key, **entry.details},
    }


def _record(
    manifest: dict[str, Any],
    evaluation: dict[str, Any],
    tasks: dict[str, Any],
    recovery: dict[str, Any],
    registered: dict[str, Any] | None,
) -> dict[str, Any]:
    kept = ("settings", "base", "calibration", "engine", "versions", "masks", "fingerprint", "layers", "auto")
    measured = {"evaluation": evaluation, "tasks": tasks, "recovery": recovery}
    return {**{key: manifest[key] for key in kept}, **measured, "registered": registered, "bom": None}


def render(record: dict[str, Any]) -> Fitted:
    """The record as two tables for a terminal: the result, and its layers."""

    def build(width: int) -> "Group":
        from rich.console import Group

        return Group(_result_table(record, width), "", *_layer_parts(record, width))

    return Fitted(build)


def _result_table(record: dict[str, Any], width: int) -> "Table":
    from rich.markup import escape

    prune, evaluation, calibration = record["settings"]["prune"], record["evaluation"], record["calibration"]
    made = table(width, "", "", title="Result")
    made.add_row("pruned by", described(prune))
    if chosen := scores_told(record):
        made.add_row("auto chose", chosen)
    made.add_row("recovery", trained(record["recovery"]))
    made.add_row("dense perplexity", f"{evaluation['dense']['perplexity']:.3f}")
    made.add_row("pruned perplexity", f"{evaluation['pruned']['perplexity']:.3f}")
    made.add_row("ratio", f"{evaluation['ratio']:.3f}")
    for what, value in more_figures(evaluation).items():
        made.add_row(what, escape(value))
    made.add_row("measured on", f"{evaluation['tokens']:,} tokens, context length {evaluation['context_length']}")
    for name, told in tasks_told(record["tasks"]).items():
        made.add_row(name, told)
    masked = evaluation["mask_sparsity"]["mlp"]
    made.add_row("MLP sparsity", f"{evaluation['sparsity']['mlp']:.2%} (masks {masked:.2%})")
    made.add_row("model sparsity", f"{evaluation['sparsity']['model']:.2%}")
    made.add_row(
        "calibrated on",
        f"{calibration['tokens']:,} tokens of {calibrated_on(calibration, escape)}, {_digest(calibration['digest'])}",
    )
    base = record["base"]
    made.add_row("base", f"{_uri(base['uri'])}, {base['dtype']}, {_digest(base['digest'])}")
    made.add_row("masks", _digest(record["masks"]["digest"]))
    made.add_row("fingerprint", _digest(record["fingerprint"]))
    engine = record["engine"]
    made.add_row("computed", f"{engine['device']}, {engine['dtype']}, torch {record['versions']['torch']}")
    made.add_row("registered", _where(record["registered"]))
    if record["bom"] is not None:
        made.add_row("bill of materials", f"{BOM}, {bom_told(record['bom'])}")
    return made


def _layer_parts(record: dict[str, Any], width: int) -> list[Any]:
    """A row a layer. What is the same in all of them is said once, not in a column."""
    layers, scores = record["layers"], layer_scores(record)
    columns: dict[str, list[str]] = {"score": scores} if scores else {}
    digits = 1 if width < NARROW else 2
    for name, heading in _PROJECTIONS.items():
        columns[heading] = [f"{layer['sparsity'][name]:.{digits}%}" for layer in layers]
    # A re-fit's own errors have columns where there was one.
    for heading, key in {"error": "relative_error", "fitted": "fitted_error", "held": "held_back_error"}.items():
        if any(layer.get(key) is not None for layer in layers):
            columns[heading] = ["" if layer.get(key) is None else f"{layer[key]:.4f}" for layer in layers]
    norms = [layer["norm"]["median"] for layer in layers]
    columns["norm"] = [f"{norm:.{_places(max(norms))}f}" for norm in norms]
    columns["2:4"] = [_runs(layer["runs_2_4"]) for layer in layers]
    same = {heading: cells[0] for heading, cells in columns.items() if len(layers) > 1 and len(set(cells)) == 1}
    varied = {heading: cells for heading, cells in columns.items() if heading not in same}
    made = table(
        width,
        "layer",
        *varied,
        title="Layers",
        right=("layer", *(name for name in varied if name not in ("score", "2:4"))),
    )
    for layer, *cells in zip(layers, *varied.values(), strict=True):
        made.add_row(str(layer["layer"]), *cells)
    told = [f"{heading} {cell}" for heading, cell in same.items()]
    return [made, *([f"In every layer: {', '.join(told)}"] if told else []), _legend(columns)]


def _legend(columns: Iterable[str]) -> str:
    return "; ".join(_LEGEND[heading] for heading in columns if heading in _LEGEND)


def _places(largest: float) -> int:
    """Decimal places that show three digits of a column's largest number."""
    return max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0


def _runs(able: dict[str, bool]) -> str:
    """Which matrices a 2:4 kernel can run."""
    runs = [heading for name, heading in _PROJECTIONS.items() if able[name]]
    return "none" if not runs else "all" if len(runs) == len(able) else ", ".join(runs)


def _digest(digest: str) -> str:
    return f"sha256 {digest[:12]}"


def _uri(uri: str | list[str]) -> str:
    from rich.markup import escape

    return escape(uri if isinstance(uri, str) else f"{uri[0]} and {len(uri) - 1} more")


def _where(registered: dict[str, Any] | None) -> str:
    from rich.markup import escape

    if registered is None:
        return "no"
    aliases = f" ({', '.join(registered['aliases'])})" if registered["aliases"] else ""
    return f"{escape(registered['model'])} version {registered['version']}{aliases}"
