"""The folder that is registered as a version: a model MLflow can load, the records it rests on, and a signature.

MLmodel, conda.yaml, ...      MLflow's own
model/, components/           the pruned checkpoint, as MLflow's transformers flavour lays it out (not with masks only)
README.md                     model card
bom.cdx.json                  bill of materials
dass/                         manifest, masks, records, answers to tasks, signature
"""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.files import files_in, read_json, scratch_folder, sha256_file, write_json
from dass.masks.pruned_record import RECORD, read_record
from dass.model.checkpoint_folder import CONFIG_FILE, contents
from tasks.pruning.recovered import NOT_TRAINED
from tasks.registry.bom import bill_of_materials, bom_text
from tasks.registry.card import card
from tasks.registry.key_file import dsse_signer
from tasks.registry.libraries import installed_libraries
from tasks.registry.served import served_signature
from tasks.registry.signing import SIGNATURE, sign
from tasks.workspace.digests import copy_remembered, unchanged_by
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow.models import Model

__all__ = ["RECORDS", "SIGNATURE", "version_folder"]

RECORDS = "dass"
MANIFEST = "dass/manifest.json"
MASKS = "dass/masks.safetensors"
UPDATES = "dass/updates"
RECOVERY = "dass/recovery.json"
RECOVERED = "dass/recovered"
"""These two where the pruned model was trained."""
STATISTICS = "dass/statistics.safetensors"
EVALUATION = "dass/evaluation.json"
TASKS = "dass/tasks.json"
ANSWERS = "dass/answers.parquet"
"""These two where tasks were asked."""
SETTINGS = "dass/settings.json"
VERSION = "dass/version.json"
CARD = "README.md"
BOM = "bom.cdx.json"

FORMAT = "dass-version-2"
CHECKPOINT = "model"
"""Where MLflow's transformers flavour puts a checkpoint."""
TOKENIZER = "components/tokenizer"
"""And its tokenizer once more."""
TOKENIZER_CLASS = "AutoTokenizer"
LOADER = "tasks.registry.flavour"
"""What MLflow imports to load a version with masks only."""
RUNS_WITH = ("torch", "transformers", "safetensors", "tokenizers")


@contextmanager
def version_folder(
    workspace: Workspace,
    settings: Settings,
    provenance: dict[str, Any],
    registration: str,
    model: "Model | None" = None,
) -> Generator[Path]:
    """Build the folder of the workspace's result, signed. It is there for as long as the context is open.

    Weights are hard links to artifacts/pruned: nothing of them is copied or loaded here.

    Args:
        workspace: every stage has run, and `check_unchanged` found nothing.
        settings: what it ran with.
        provenance: {"git_commit", "git_dirty", "dvc": {path: md5}}.
        registration: the digest that equal results share.
        model: the MLmodel to fill in, with the ids that MLflow gave it.
    """
    from mlflow.models import Model

    with scratch_folder(workspace.private, "version") as scratch:  # beside the artifacts, for hard links
        folder = scratch / "version"
        if settings.register_.artifact == "checkpoint":
            _save_checkpoint(workspace, settings, folder, model or Model())
        else:
            _save_loader(folder, model or Model())
        signer = dsse_signer()
        identity = {"model": settings.register_.model, "registration": registration, "key": signer.public_key.keyid}
        _save_records(workspace, settings, provenance, folder, identity)
        sign(folder, signer)
        yield folder
        with unchanged_by(_large_files(workspace)):
            shutil.rmtree(folder)  # the links to them


def _save_checkpoint(workspace: Workspace, settings: Settings, folder: Path, model: "Model") -> None:
    """MLflow's transformers flavour of artifacts/pruned."""
    import mlflow.transformers

    found = contents(workspace.pruned)
    without_weights = folder.with_name("checkpoint")  # MLflow copies what it is given
    for name in [*found.names, RECORD]:
        if not name.endswith(".safetensors") and (workspace.pruned / name).is_file():
            (without_weights / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(workspace.pruned / name, without_weights / name)
    mlflow.transformers.save_model(
        str(without_weights),
        str(folder),
        task="text-generation",
        signature=served_signature(),
        mlflow_model=model,
        pip_requirements=_requirements(),
    )
    (folder / "LICENSE.txt").unlink(missing_ok=True)  # says only that the hub has no model called like the folder
    for name in found.weights:
        if name.endswith(".safetensors"):
            _link(workspace.pruned / name, folder / CHECKPOINT / name)
    # MLflow saved the tokenizer anew, as the transformers installed here does. The checkpoint's own files take its
    # place, with the config, by which transformers finds the class: what is read there is what was proved.
    shutil.rmtree(folder / TOKENIZER)
    for name in found.beside:
        _link(workspace.pruned / name, folder / TOKENIZER / name)
    model.flavors["transformers"] |= {
        "source_model_name": settings.register_.model,
        "tokenizer_type": TOKENIZER_CLASS,
    }
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(str(folder / "MLmodel"))


def _save_loader(folder: Path, model: "Model") -> None:
    """A pyfunc flavour without any weights; `tasks.registry.flavour` puts them together when the model is loaded."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        signature=served_signature(),
        mlflow_model=model,
        pip_requirements=_requirements(),
    )


def _save_records(
    workspace: Workspace, settings: Settings, provenance: dict[str, Any], folder: Path, identity: dict[str, str]
) -> None:
    (folder / RECORDS).mkdir()
    copied = {
        MANIFEST: workspace.masks / "manifest.json",
        MASKS: workspace.masks / "masks.safetensors",
        STATISTICS: workspace.masks / "statistics.safetensors",
        EVALUATION: workspace.metrics / "evaluation.json",
    }
    if settings.evaluate.tasks:
        copied |= {TASKS: workspace.metrics / "tasks.json", ANSWERS: workspace.answers / "answers.parquet"}
    copied |= {f"{UPDATES}/{path.name}": path for path in sorted((workspace.masks / "updates").glob("*.safetensors"))}
    if settings.recover.steps:
        recovered = sorted((workspace.recovered / "updates").glob("*.safetensors"))
        copied |= {RECOVERY: workspace.recovered / "recovery.json"}
        copied |= {f"{RECOVERED}/{path.name}": path for path in recovered}
    for name, path in copied.items():
        _link(path, folder / name)
    artifact = settings.register_.artifact
    version = {
        "format": FORMAT,
        **identity,
        "manifest": sha256_file(folder / MANIFEST),
        "artifact": artifact,
        "checkpoint": CHECKPOINT if artifact == "checkpoint" else None,
        "dass": version_of("dass"),
        "git": {"commit": provenance["git_commit"], "dirty": provenance["git_dirty"]},
        "dvc": provenance["dvc"],
        "architecture": architecture_of(workspace.pruned),
        "weights": _weights(workspace.pruned),
        "evaluated_on": _evaluated_on(workspace),
        "libraries": installed_libraries(),
    }
    asked = settings.model_dump(mode="json", by_alias=True)
    write_json(folder / SETTINGS, asked)
    write_json(folder / VERSION, version)
    manifest, evaluation = (read_json(folder / name) for name in (MANIFEST, EVALUATION))
    tasks, recovery = tasks_of(folder), recovery_of(folder)
    (folder / CARD).write_text(card(manifest, evaluation, tasks, settings, version, recovery), encoding="utf-8")
    bom = bill_of_materials(manifest, evaluation, tasks, asked, version, recovery)
    (folder / BOM).write_text(bom_text(bom), encoding="utf-8")


def architecture_of(checkpoint: Path) -> dict[str, str | None]:
    """What kind of model a checkpoint's config says it is: {"family", "class"}."""
    config = read_json(checkpoint / CONFIG_FILE)
    return {"family": config.get("model_type"), "class": (config.get("architectures") or [None])[0]}


def _weights(checkpoint: Path) -> dict[str, str]:
    """File -> sha256 of the pruned weights, as they were written: they are not read again."""
    files = (read_record(checkpoint) or {}).get("files", {})
    return {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}


def _evaluated_on(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Text -> where it comes from, and the digest of the windows that were cut out of it."""
    main = read_json(workspace.evaluation / "dense.json")
    texts = {"evaluation": main, **main["texts"]}
    return {name: {**text["source"], "digest": text["digest"]} for name, text in texts.items()}


def tasks_of(folder: Path) -> dict[str, Any]:
    """What a version's folder says of zero-shot tasks; nothing where none was asked."""
    tasks: dict[str, Any] = read_json(folder / TASKS) if (folder / TASKS).exists() else {"tasks": {}}
    return tasks


def recovery_of(folder: Path) -> dict[str, Any]:
    """What a version's folder says of recovery; nothing was trained where it says nothing."""
    recovery: dict[str, Any] = read_json(folder / RECOVERY) if (folder / RECOVERY).exists() else NOT_TRAINED
    return recovery


def _requirements() -> list[str]:
    # Given, because MLflow's own list wants torchvision. "+cpu" is no version a package index knows.
    return [f"{package}=={version_of(package).partition('+')[0]}" for package in RUNS_WITH]


def _link(path: Path, target: Path) -> None:
    """A second name for a file, or a copy on another disk. Nobody writes into either of them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # DVC may have linked it from its cache, by a symlink
    with unchanged_by([path]):
        try:
            os.link(path, target)
        except OSError:
            copy_remembered(path, target)


def _large_files(workspace: Workspace) -> list[Path]:
    """What may be linked, by its name in the workspace."""
    places = (workspace.pruned, workspace.masks, workspace.recovered, workspace.answers)
    return [path for place in places for path in files_in(place).values() if path.is_file()]
