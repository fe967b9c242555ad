"""Where a version comes from, what was decided about it, and how anybody can check that."""

import json
import re
from shlex import quote
from typing import Any

from tasks.registry.card import described, trained
from tasks.registry.result import scores_told
from tasks.registry.timeline import told
from tasks.report.anatomy import PROJECTIONS
from tasks.report.blocks import Cell, Chart, Section, Table, digest, number, share, text
from tasks.report.charts import by_layer_and_projection
from tasks.report.facts import Facts
from tasks.sources.calibrated_on import sources_of
from tasks.sources.calibrated_on import told as calibrated_on
from tasks.workspace.flat import flat
from tasks.workspace.redaction import redacted


def change(facts: Facts) -> Section | None:
    """What changed since the champion: settings, figures and mask bits."""
    if facts.change is None:
        return None
    title = f"Since the champion, version {facts.change.champion}"
    if facts.change.record is None:
        return Section("change", title, [f"They were not compared: {facts.change.told}"])
    record, tables, same = facts.change.record, [], []
    columns = ["", f"version {record['before']}", f"version {record['after']}"]
    for what in ("settings", "calibration", "figures", "values"):
        rows = [
            [text(key, code=True), _value(before), _value(after)]
            for key, (before, after) in record[what].items()
            if not isinstance(before, list | dict) and not isinstance(after, list | dict)
        ]
        if rows:
            tables.append(Table(what.capitalize(), columns, rows))
        elif not record[what]:
            same.append(what)
    moved = [each for each in record["masks"] if each["moved"]]
    notes = [f"The same: {', '.join(same)}."] if same else []
    if not moved:
        notes.append(f"The masks are the same in all {len(record['masks'])} matrices.")
        return Section("change", title, notes, tables=tables)
    bits = sum(each["moved"] for each in moved)
    notes.append(f"{bits:,} mask bits moved, in {len(moved)} of {len(record['masks'])} matrices.")
    rows = [
        [
            text(each["tensor"], code=True),
            number(each["moved"], "{:,}"),
            share(each["share"]),
            number(each["jaccard"], "{:.4f}"),
        ]
        for each in record["masks"]
    ]
    of_masks = ["mask of", "bits moved", "share", "Jaccard of what is kept"]
    tables.append(Table("Mask bits", of_masks, rows, folded=True))
    return Section("change", title, notes, _moved_charts(record["masks"]), tables)


def _moved_charts(masks: list[dict[str, Any]]) -> list[Chart]:
    """Of matrices that are called gate, up and down; a mixture's experts are in the table only."""
    rows = []
    for each in masks:
        number_, name = (
            re.search(r"\.(\d+)\.", each["tensor"]),
            each["tensor"].removesuffix(".weight").rpartition(".")[2],
        )
        if number_ is not None and name in PROJECTIONS and ".experts." not in each["tensor"]:
            rows.append({"layer": int(number_[1]), "projection": name, "value": each["share"]})
    if not rows:
        return []
    most = max(rows, key=lambda row: float(row["value"]))
    said = f"Most moved in layer {most['layer']}, {most['projection']}: {most['value']:.1%}."
    spec = by_layer_and_projection(rows, "mask bits moved (%)", ".1%", whole=False)
    return [Chart("moved", "Mask bits that moved since the champion", said, spec)]


def _value(value: Any) -> Cell:
    if value is None or isinstance(value, bool):
        return text(json.dumps(value))
    return number(value, "{:.6g}") if type(value) in (int, float) else text(redacted(str(value)))


def provenance(facts: Facts) -> Section:
    """Base, calibration, evaluation, code: by name and by digest."""
    manifest, origin, evaluation = facts.manifest, facts.origin, facts.evaluation
    base, calibration, engine = manifest["base"], manifest["calibration"], manifest["engine"]
    entry = facts.chain.registered(facts.number)
    made: list[tuple[str, Cell]] = [
        ("base", _source(base)),
        ("base digest", digest(base["digest"])),
        ("tokenizer digest", digest(base["tokenizer"])),
        ("licence of the base", text(base["license"])),
        ("pruned by", text(described(manifest["settings"]["prune"]))),
        *([("auto chose", text(chosen))] if (chosen := scores_told(manifest)) else []),
        ("recovery", text(trained(facts.recovery))),
        ("masks digest", digest(manifest["masks"]["digest"])),
        ("computed", text(f"{engine['device']}, {engine['dtype']}, engine {engine['version']}")),
        ("versions", text(", ".join(f"{name} {version}" for name, version in manifest["versions"].items()))),
        ("commit", Cell(origin["git"]["commit"], code=True) if origin["git"]["commit"] else text("not in git")),
        ("files not committed", text({True: "yes", False: "no", None: "not known"}[origin["git"]["dirty"]])),
        ("registered", text(entry.time.replace("T", " ").partition(".")[0] + " UTC" if entry else None)),
        ("signed by", text(entry.actor if entry else None)),
        ("signing key", digest(origin["key"])),
        ("MLflow", text(facts.tracking_uri, code=True)),
        ("MLflow run", text(facts.run_id, code=True)),
    ]
    windows = calibration["settings"]
    sources = facts.settings["sources"]
    seen: list[tuple[str, Cell, Cell]] = [
        ("text", text(redacted(calibrated_on(calibration))), _source(sources["evaluation"])),
        (
            "sha256",
            text(", ".join(str(each["sha256"])[:12] for each in sources_of(calibration).values()))
            if calibration["texts"]
            else digest(calibration["source"]["sha256"]),
            digest(sources["evaluation"]["sha256"]),
        ),
        ("windows", number(windows["samples"], "{:,}"), number(evaluation["windows"], "{:,}")),
        (
            "tokens a window",
            number(windows["sequence_length"], "{:,}"),
            number(evaluation["context_length"], "{:,}"),
        ),
        ("tokens", number(calibration["tokens"], "{:,}"), number(evaluation["tokens"], "{:,}")),
        ("documents", number(calibration["documents"], "{:,}"), text(None)),
        ("seed", text(windows["seed"]), text(None)),
        ("BOS before each window", text(_yes(calibration["bos"])), text(_yes(evaluation["bos"]))),
        ("digest of the tokens", digest(calibration["digest"]), digest(origin["evaluated_on"]["evaluation"]["digest"])),
    ]
    tables = [
        Table("What it was made from", ["", ""], [[text(name), cell] for name, cell in made]),
        Table(
            "Calibration and evaluation",
            ["", "calibration", "evaluation"],
            [[text(name), one, other] for name, one, other in seen if one.text != "–" or other.text != "–"],
        ),
    ]
    if origin["dvc"]:
        rows = [[text(path, code=True), digest(md5)] for path, md5 in origin["dvc"].items()]
        tables.append(Table("Data in DVC", ["path", "md5"], rows, folded=True))
    settings = [[text(key, code=True), _value(value)] for key, value in flat(facts.settings).items()]
    tables.append(Table("All settings", ["setting", "value"], settings, folded=True))
    return Section("provenance", "Where it comes from", tables=tables)


def _source(source: dict[str, Any] | None) -> Cell:
    if not source:
        return text(None)
    uri = source["uri"]
    named = uri if isinstance(uri, str) else f"{uri[0]} and {len(uri) - 1} more"
    revision = f" at {source['revision']}" if source.get("revision") else ""
    return text(redacted(f"{named}{revision}"))


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def history(facts: Facts) -> Section:
    """The whole ledger, oldest first; it was checked before."""
    rows = [
        [
            number(entry.n, "{}"),
            text(entry.time.replace("T", " ").partition(".")[0]),
            text(entry.event.replace("_", " ")),
            text(entry.version or None),
            text(entry.actor),
            text(told(entry) or None),
            text(entry.key[:16], code=True),
        ]
        for entry in facts.chain.entries
        if entry.version in ("", facts.number) or entry.event in _ABOUT_ALL
    ]
    left = len(facts.chain.entries) - len(rows)
    notes = [
        f"{len(facts.chain.entries):,} entries were checked: each is signed by a key that might write it, names the "
        "one before it, and none is missing."
        + (
            f" Shown are those about this version, the champion and the keys; {left:,} about others are not."
            if left
            else ""
        )
    ]
    columns = ["entry", "time (UTC)", "event", "version", "by", "", "key"]
    return Section("history", "What was decided", notes, tables=[Table("Ledger", columns, rows)])


_ABOUT_ALL = ("promoted", "rolled_back")


def verify(facts: Facts) -> Section:
    """What to type to check all of it."""
    model, number_ = facts.model, facts.number
    shown = f"models:/{model}/{number_}"
    commands = [
        (
            f"dass verify {number_}",
            "files, signature, ledger, weights = base × masks bit for bit, pattern, configuration",
        ),
        (f"dass verify {number_} --replay", "and prune again from the same data: the masks must come out the same"),
        (f"dass show {number_}", "the figures, from the signed files"),
        (
            "dass export-audit history.zip && dass audit history.zip",
            "the ledger, without MLflow and without a workspace",
        ),
        (
            f"python -c {quote(f'import dass; dass.load({json.dumps(shown)})')}",
            "load it; what is not as signed is refused",
        ),
    ]
    key = facts.origin["key"]
    notes = [f"This page is a picture, not a proof. It was drawn from files signed with key {key}."]
    return Section("verify", "How to verify", notes, commands=commands)
