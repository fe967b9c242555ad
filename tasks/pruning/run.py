"""One pruning run of a workspace, layer by layer, and the folder of masks it ends in.

Finished layers lie under .dass/work/<fingerprint> (`dass.engine.run`). A run that died goes on behind the last of them
and ends in the same bytes.
"""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dass.engine.choice import Choice
from dass.engine.dense import are_collected
from dass.engine.layerwise import Buffering, Wanted, wanted_by
from dass.engine.ranks import ALONE, Ranks
from dass.engine.run import CheckpointRun, LayerRecord, read_report
from dass.engine.version import ENGINE_VERSION
from dass.errors import InputError
from dass.files import complete_folder, digest_of, read_json, write_json
from dass.masks.mask_file import MaskFile, removed_shares, save_masks
from dass.masks.updates import updates_in
from dass.method.plan import Plan
from dass.model.checkpoint import Checkpoint
from dass.model.streaming import StreamedDecoder
from tasks.pruning.nodes import check_nodes
from tasks.pruning.processes import JoinedProcesses, is_rank
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.digests import copy_remembered, known_digests
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

MASKS, STATISTICS, MANIFEST, UPDATES = "masks.safetensors", "statistics.safetensors", "manifest.json", "updates"
_FORMAT = "dass-manifest-1"


class PruningRun:
    """One pruning run, layer by layer. `layer` must be called for 0, 1, 2 ... `layer_count` − 1.

    Attributes:
        fingerprint: digest of everything the masks depend on; names the work folder.
        layer_count: number of decoder layers.
    """

    def __init__(self, workspace: Workspace, settings: Settings, ranks: Ranks = ALONE) -> None:
        """Open the base checkpoint.

        Raises:
            InputError: settings the model cannot be pruned with; the stages before have not run; nodes that differ.
        """
        engine, self._plan = settings.engine, settings.prune.plan
        self._base_folder = workspace.base
        self._base = read_stage(workspace.base / "source.json", "sources")
        self._calibration = read_stage(workspace.calibration / "calibration.json", "calibration")
        inputs = inputs_of(workspace, settings)
        self._engine = inputs["engine"]
        device = choose_device(engine.device)
        check_nodes(ranks, device, workspace, settings, "prune")
        decoder = StreamedDecoder(workspace.base, device, getattr(torch, self._engine["dtype"]))
        self.fingerprint = fingerprint_of(inputs, self._plan)
        self._work = workspace.work
        folder = self._work / self.fingerprint
        tokens = load_file(workspace.calibration / "tokens.safetensors")["input_ids"]
        self._run = CheckpointRun(
            decoder,
            tokens,
            self._plan,
            folder,
            statistics=statistics_folder(workspace, inputs, self._plan),
            buffering=Buffering(
                None if engine.batch_tokens == "auto" else engine.batch_tokens, engine.hidden_states, folder
            ),
            ranks=ranks,
            checkpoint_every=engine.checkpoint_every,
        )
        self.layer_count = self._run.layer_count
        self._processes: JoinedProcesses | None = None
        if engine.ranks > 1 and not is_rank():
            self._processes = JoinedProcesses(workspace, settings, folder, "prune")

    def collect(self, folders: dict[Path, Wanted]) -> bool:
        """Collect the dense statistics that are missing of several folders, in one pass; whether any were.

        Raises:
            InputError, NumericalError: as `dass.engine.dense.collect_statistics`.
        """
        missing = {folder: wanted for folder, wanted in folders.items() if not are_collected(folder, self.layer_count)}
        if missing:
            self._run.collect(missing)
        return bool(missing)

    def choose(self) -> Choice | None:
        """What `method: auto` chooses for each layer; None: a method is named. Takes long the first time.

        Raises:
            NumericalError: activations, or what is predicted, are NaN or infinite.
            ProcessesError: as `layer`.
        """
        if self._plan.method != "auto" or self._processes is None:
            return self._run.choice
        self._processes.wait_for(self._run.choice_file.exists, "Pruning", lambda: "while auto was choosing")
        return Choice.of(read_json(self._run.choice_file))

    def layer(self, index: int) -> LayerRecord:
        """Prune one layer, or replay it when an earlier run finished it.

        Raises:
            NumericalError: its activations are NaN or infinite.
            ProcessesError: it was left to several processes, and one of them died.
        """
        if self._processes is None:
            return self._run.layer(index)
        path = self._run.mask_file(index)
        self._processes.wait_for(path.exists, "Pruning", lambda: f"in layer {index}")
        return LayerRecord(read_report(path), resumed=index < self._run.finished)

    def finish(self, masks_folder: Path) -> None:
        """Gather all layers into artifacts/masks: masks, statistics, manifest. No times: equal runs, equal bytes."""
        with complete_folder(masks_folder) as folder:
            save_masks(self._run.masks, folder / MASKS)
            save_file(self._run.norms(), folder / STATISTICS)
            if self._plan.changes_kept_weights:
                (folder / UPDATES).mkdir()
                for path in self._run.updates.files:
                    copy_remembered(path, folder / UPDATES / path.name.removeprefix("updates_"))
            write_json(folder / MANIFEST, self._manifest(folder))

    def close(self) -> None:
        """Stop what is still running and give back memory; finished layers stay."""
        self._run.close()
        if self._processes is not None:
            self._processes.close()

    def discard(self) -> None:
        """Forget the finished layers of other runs; this one's stay for `seconds_per_layer`."""
        for other in self._work.iterdir():
            if other.name != self.fingerprint:
                shutil.rmtree(other)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        masks, updates = MaskFile(folder / MASKS), updates_in(folder / UPDATES)
        reports = [asdict(report) for report in self._run.reports()]
        for report in reports:
            del report["seconds"]
        return {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "engine": self._engine,
            "base": self._base,
            "calibration": self._calibration,
            "settings": {"prune": self._plan.named},
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "transformers", "safetensors")},
            },
            "masks": {"file": MASKS, "digest": masks.digest},
            "statistics": {"file": STATISTICS, "sha256": known_digests(folder / STATISTICS, md5=True).sha256},
            # What changed besides zeros: the kept weights of these tensors, and tensors without a mask as a whole.
            "updates": {
                "folder": UPDATES,
                "digest": updates.digest,
                "tensors": sorted(updates),
                "tuned": updates.tuned(masks),
            }
            if updates
            else None,
            "sparsity": removed_shares(masks, Checkpoint(self._base_folder)),
            # What `method: auto` proposed, how far from dense each proposal is, and what each layer was given.
            "auto": read_json(self._run.choice_file) if self._plan.method == "auto" else None,
            "layers": reports,
        }


def inputs_of(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """What masks depend on besides the plan: digests of base and calibration, and how is computed.

    Raises:
        InputError: the stages before have not run; there is no such device.
    """
    engine = settings.engine
    device = choose_device(engine.device)
    dtype = choose_dtype(engine.dtype, Checkpoint(workspace.base).main_dtype, device)
    return {
        "base": read_stage(workspace.base / "source.json", "sources")["digest"],
        "calibration": read_stage(workspace.calibration / "calibration.json", "calibration")["digest"],
        "engine": {
            "version": ENGINE_VERSION,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "batch_tokens": engine.batch_tokens,
        },
    }


def fingerprint_of(inputs: dict[str, Any], plan: Plan) -> str:
    """Digest of everything the masks depend on.

    Args:
        inputs: as `inputs_of`.
        plan: what is removed.
    """
    return digest_of({**inputs, "prune": plan.named})


def statistics_folder(workspace: Workspace, inputs: dict[str, Any], plan: Plan) -> Path:
    """Where the dense statistics lie that a plan's masks are made from. Arguments as `fingerprint_of`."""
    collected = [plan.needs_gram_x, plan.needs_gram_z, plan.min_expert_tokens, plan.held_back]
    return workspace.statistics / digest_of({**inputs, "collected": collected})


def share_statistics(workspace: Workspace, asked: Sequence[Settings]) -> int:
    """Collect the dense statistics of several runs with `propagation: dense`, those on the same windows in one pass.

    Args:
        workspace: its base and calibration are those of all runs.
        asked: the settings of each run; those with `propagation: pruned` are left out.

    Returns:
        How many passes were made.

    Raises:
        InputError, NumericalError: as in PruningRun.
    """
    passes: dict[tuple[str, int, int], tuple[Settings, dict[Path, Wanted]]] = {}
    for settings in asked:
        plan = settings.prune.plan
        if plan.propagation == "dense":
            inputs = inputs_of(workspace, settings)
            group = digest_of(inputs), plan.min_expert_tokens, plan.held_back
            folders = passes.setdefault(group, (settings, {}))[1]
            folders[statistics_folder(workspace, inputs, plan)] = wanted_by(plan)
    made = 0
    for settings, folders in passes.values():
        made += PruningRun(workspace, settings).collect(folders)
    return made


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
