"""Stages `prune` and `materialize`: masks from base and calibration, and the pruned checkpoint from base and masks.

Each finished layer is one file under .dass/work/<fingerprint>, complete or absent. A run that died goes on behind its
last finished layer: finished layers are replayed forward with their masks and end in the same bytes.
"""

import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dass.checkpoint import Checkpoint
from dass.engine import ENGINE_VERSION, LayerReport, LayerwisePruner, check_fits, plan
from dass.errors import InputError
from dass.files import canonical_json, complete_file, complete_folder, digest_of, read_json, write_json
from dass.masks import MaskFile, apply_to_checkpoint, removed_shares, save_masks
from dass.streaming import StreamedDecoder
from tasks.devices import choose_device, choose_dtype
from tasks.progress import progress
from tasks.settings import Settings
from tasks.workspace import Workspace

MASKS, STATISTICS, MANIFEST = "masks.safetensors", "statistics.safetensors", "manifest.json"
_FORMAT = "dass-manifest-1"


@dataclass(frozen=True)
class LayerRecord:
    """A layer's report, and whether it was finished by an earlier run."""

    report: LayerReport
    resumed: bool


class PruningRun:
    """One pruning run, layer by layer. `layer` must be called for 0, 1, 2 ... `layer_count` − 1.

    Attributes:
        fingerprint: digest of everything the masks depend on; names the work folder.
        layer_count: number of decoder layers.
    """

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        """Open the base checkpoint and embed the calibration windows.

        Raises:
            InputError: settings the model cannot be pruned with; the stages before have not run.
        """
        prune, engine = settings.prune, settings.engine
        self._base_folder = workspace.base
        self._base = read_stage(workspace.base / "source.json", "sources")
        self._calibration = read_stage(workspace.calibration / "calibration.json", "calibration")
        what = plan(prune.method, prune.sparsity, prune.pattern, prune.alpha)
        decoder = StreamedDecoder(workspace.base, choose_device(engine.device), choose_dtype(engine.dtype))
        check_fits(decoder, what)
        self.layer_count = len(decoder)
        self._engine = {
            "version": ENGINE_VERSION,
            "device": decoder.device.type,
            "dtype": str(decoder.dtype).removeprefix("torch."),
            "batch_tokens": engine.batch_tokens,
        }
        self._settings = {
            "method": what.method,
            "pattern": str(what.pattern),
            "sparsity": what.pattern.sparsity,
            "alpha": what.alpha,
        }
        self.fingerprint = digest_of(
            {
                "base": self._base["digest"],
                "calibration": self._calibration["digest"],
                "engine": self._engine,
                "prune": self._settings,
            }
        )
        self._folder = workspace.work / self.fingerprint
        self._folder.mkdir(parents=True, exist_ok=True)
        tokens = load_file(workspace.calibration / "tokens.safetensors")["input_ids"]
        batch_tokens = None if engine.batch_tokens == "auto" else engine.batch_tokens
        self._pruner = LayerwisePruner(decoder, tokens, what, batch_tokens)

    def layer(self, index: int) -> LayerRecord:
        """Prune one layer, or replay it when an earlier run finished it.

        Raises:
            NumericalError: its activations are NaN or infinite.
        """
        path = self._layer_file(index)
        if path.exists():
            masks = MaskFile(path)
            self._pruner.replay_layer(index, dict(masks))
            return LayerRecord(LayerReport(**json.loads(masks.metadata["report"])), resumed=True)
        result = self._pruner.prune_layer(index)
        norms = {f"layers.{index}.norm_x": result.norms.x_H.cpu(), f"layers.{index}.norm_z": result.norms.z_I.cpu()}
        with complete_file(self._norms_file(index)) as temporary:
            save_file(norms, temporary)
        with complete_file(path) as temporary:  # last: this file's presence says that the layer is finished
            save_masks(result.keep, temporary, {"report": canonical_json(asdict(result.report))})
        return LayerRecord(result.report, resumed=False)

    def finish(self, masks_folder: Path) -> None:
        """Gather all layers into artifacts/masks: masks, statistics, manifest. No times: equal runs, equal bytes."""
        layers = [MaskFile(self._layer_file(index)) for index in range(self.layer_count)]
        keep = {name: mask for layer in layers for name, mask in layer.items()}
        statistics: dict[str, torch.Tensor] = {}
        for index in range(self.layer_count):
            statistics |= load_file(self._norms_file(index))
        with complete_folder(masks_folder) as folder:
            save_masks(keep, folder / MASKS)
            save_file(statistics, folder / STATISTICS)
            write_json(folder / MANIFEST, self._manifest(layers, MaskFile(folder / MASKS)))

    def discard(self) -> None:
        """Forget the finished layers of other runs; this one's stay for `seconds_per_layer`."""
        for other in self._folder.parent.iterdir():
            if other != self._folder:
                shutil.rmtree(other)

    def _manifest(self, layers: list[MaskFile], masks: MaskFile) -> dict[str, Any]:
        reports = [json.loads(layer.metadata["report"]) for layer in layers]
        for report in reports:
            del report["seconds"]
        return {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "engine": self._engine,
            "base": self._base,
            "calibration": self._calibration,
            "settings": {"prune": self._settings},
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "transformers", "safetensors")},
            },
            "masks": {"file": MASKS, "digest": masks.digest},
            "sparsity": removed_shares(masks, Checkpoint(self._base_folder)),
            "layers": reports,
        }

    def _layer_file(self, index: int) -> Path:
        return self._folder / f"layer_{index:03d}.safetensors"

    def _norms_file(self, index: int) -> Path:
        return self._folder / f"norms_{index:03d}.safetensors"


def prune(
    workspace: Workspace, settings: Settings, do_layer: Callable[[PruningRun, int], LayerRecord] = PruningRun.layer
) -> None:
    """Stage `prune`: artifacts/base and artifacts/calibration to artifacts/masks.

    Args:
        workspace: where.
        settings: sections `prune` and `engine`.
        do_layer: does one layer; the flow gives one that is a Prefect task.

    Raises:
        InputError, NumericalError: as in PruningRun.
    """
    run = PruningRun(workspace, settings)
    for index in progress(range(run.layer_count), "prune layers"):
        do_layer(run, index)
    run.finish(workspace.masks)
    run.discard()


def materialize(workspace: Workspace, settings: Settings) -> None:
    """Stage `materialize`: artifacts/base × artifacts/masks to artifacts/pruned.

    Raises:
        InputError: the masks belong to another base.
    """
    source = read_stage(workspace.base / "source.json", "sources")
    manifest = read_stage(workspace.masks / MANIFEST, "prune")
    if manifest["base"]["digest"] != source["digest"]:
        raise InputError(f"{workspace.masks} was made from another base than {workspace.base}. Run: dass run")
    base = Checkpoint(workspace.base)
    with complete_folder(workspace.pruned) as folder:
        for path in sorted(workspace.base.iterdir()):
            if path.name != "source.json" and path.name not in base.files:
                shutil.copyfile(path, folder / path.name)
        apply_to_checkpoint(base, MaskFile(workspace.masks / MASKS), folder)


def seconds_per_layer(workspace: Workspace) -> list[float] | None:
    """Wall seconds each layer of the workspace's masks took, or None when they were not made here."""
    fingerprint = read_stage(workspace.masks / MANIFEST, "prune")["fingerprint"]
    reports = list(_reports(workspace.work / fingerprint))
    return [report["seconds"] for report in reports] if reports else None


def _reports(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("layer_*.safetensors")):
        yield json.loads(MaskFile(path).metadata["report"])


def read_stage(path: Path, stage: str) -> dict[str, Any]:
    """A JSON record that an earlier stage wrote.

    Raises:
        InputError: it is not there. The message names the stage to run.
    """
    try:
        record: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise InputError(f"No {path}. Run: dass run, or dvc repro {stage}") from None
    return record
