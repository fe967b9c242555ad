"""One recovery of a workspace: its inputs, the folder that its states lie in, and what becomes of them.

States lie under .dass/work/<fingerprint> (`dass.recovery.loop`). A run that died goes on from the last of them and ends
in the same bytes. The kind of device and the number of processes are part of the fingerprint: on another kind, or with
other processes, it would end in others, and is refused until the states of the first are forgotten (`--restart`).
"""

import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.engine.ranks import ALONE, Ranks
from dass.errors import InputError
from dass.files import canonical_json, complete_folder, digest_of, files_in, read_json, write_json
from dass.masks.mask_file import MaskFile
from dass.masks.updates import named_updates, save_updates, updates_in
from dass.model.checkpoint import Checkpoint
from dass.model.memory import free_device_memory, free_host_memory, is_out_of_memory
from dass.model.pretrained import load_model
from dass.recovery.divided import divide
from dass.recovery.loop import Recovery, State
from dass.recovery.recipe import held_back_windows, windows_a_step
from dass.recovery.student import Student
from dass.recovery.teacher import LiveTeacher, StoredTeacher, Teacher, store_teacher
from tasks.calibration import drawn_windows
from tasks.pruning.nodes import check_nodes
from tasks.pruning.processes import JoinedProcesses, is_rank
from tasks.pruning.recovered import FORMAT
from tasks.pruning.run import MANIFEST, MASKS, UPDATES, read_stage
from tasks.sources.tokens import digest_of_ids
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.digests import copy_remembered
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings

RECORD, TOKENS = "recovery.json", "tokens.safetensors"
VERSION = 2
"""Of how it is trained: another one begins anew."""

_INPUTS, _STEPS, _RESULT, _TEACHER = "inputs.json", "steps.jsonl", "result", "teacher.safetensors"
_LOWER = (
    "Lower recover.batch_tokens, or set recover.activation_checkpointing: true, recover.teacher: stored, or "
    "recover.train: norms or lora."
)

logger = logging.getLogger("dass")

OnStep = Callable[[dict[str, Any]], object]


class RecoveryRun:
    """One recovery.

    Attributes:
        fingerprint: digest of everything the result depends on; names the work folder.
        steps: how many are asked for.
    """

    def __init__(
        self, workspace: Workspace, settings: Settings, ranks: Ranks = ALONE, windows: Tensor | None = None
    ) -> None:
        """Open the masks and read the windows; no model yet.

        Args:
            workspace, settings: where, and what is asked.
            ranks: the processes that share each step.
            windows: the windows, where they were drawn before, LongTensor (W, L).

        Raises:
            InputError: a stage before has not run, the masks are not the base's, the windows cannot be drawn or are too
                few, or the model does not fit into memory.
        """
        self._ws, self._settings, self._ranks = workspace, settings, ranks
        self._recipe = settings.recover.recipe
        source = read_stage(workspace.base / "source.json", "sources")
        calibration = read_stage(workspace.calibration / "calibration.json", "calibration")
        manifest = read_stage(workspace.masks / MANIFEST, "prune")
        if manifest["base"]["digest"] != source["digest"]:
            raise InputError(
                f"{workspace.masks} was made from another base than {workspace.base}, so that one is no teacher of "
                "this student. Run: dass run"
            )
        self._masks = MaskFile(workspace.masks / MASKS)
        self._pruned, _ = named_updates(self._masks, [(workspace.masks / UPDATES, manifest["updates"])])
        self._device = choose_device(settings.engine.device)
        check_nodes(ranks, self._device, workspace, settings, "recover")
        dtype = choose_dtype(settings.engine.dtype, Checkpoint(workspace.base).main_dtype, self._device)
        if dtype == torch.float16:
            logger.info("Recovery computes in float32: small gradients are lost in float16")
        self._autocast = torch.bfloat16 if dtype == torch.bfloat16 else None
        self._windows, self._text = self._read_windows(calibration, windows)
        self.steps = self._recipe.steps
        nodes = ranks.nodes if is_rank() else settings.engine.nodes
        self._engine = {
            "version": VERSION,
            "device": self._device.type,
            "dtype": "bfloat16" if self._autocast else "float32",
            "processes": ranks.size if is_rank() else settings.engine.ranks,
            **({"nodes": nodes} if nodes > 1 else {}),
            **({"sharded": True} if settings.recover.sharded else {}),
        }
        self._inputs = {
            "base": source["digest"],
            "masks": manifest["masks"]["digest"],
            "updates": (manifest["updates"] or {}).get("digest"),
            "text": self._text["digest"],
            "recover": self._recipe.named,
        }
        self.fingerprint = digest_of({**self._inputs, "engine": self._engine})
        self._folder = workspace.work / self.fingerprint
        if self._engine["processes"] == 1:
            self._check_memory()

    def train(self, on_step: OnStep) -> None:
        """Train to the end, or go on from the last state.

        Args:
            on_step: called with each entry of the history that is made now.

        Raises:
            InputError: it does not fit into memory, or was begun on another kind of device. States stay.
            NumericalError: the loss is NaN or infinite. States stay.
            ProcessesError: it was left to several processes, and one of them died.
        """
        if (self._folder / _RESULT).is_dir():
            return
        self._refuse_another_s()
        if self._settings.engine.ranks > 1 and not is_rank():
            self._watch(on_step)
            return
        if self._ranks.is_first:
            write_json(self._folder / _INPUTS, {"inputs": self._inputs, "engine": self._engine})
        try:
            self._train(on_step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            told = f"Recovery does not fit into the memory of {self._device.type}. {_LOWER}"
            raise InputError(told) from None

    def finish(self, recovered: Path) -> None:
        """Make artifacts/recovered of what was trained. No times: equal runs, equal bytes."""
        with complete_folder(recovered) as folder:
            for name, path in files_in(self._folder / _RESULT).items():
                (folder / name).parent.mkdir(exist_ok=True)
                copy_remembered(path, folder / name)
            if self._text["drawn"]:
                save_file({"input_ids": self._windows}, folder / TOKENS)

    def discard(self) -> None:
        """Forget the states of other recoveries, and of this one all but the result."""
        for other in self._ws.work.iterdir():
            if other.name != self.fingerprint and (other / _INPUTS).exists():
                shutil.rmtree(other)
        for path in self._folder.glob("*.safetensors"):
            path.unlink()

    def _read_windows(self, calibration: dict[str, Any], given: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """The windows, and what the record says of them."""
        asked = self._settings.recover
        is_drawn = asked.windows is not None
        record: dict[str, Any]
        if given is not None:
            windows, record = given, {"source": None, "texts": {}, "digest": digest_of_ids(given)}
        elif not is_drawn:
            windows, record = load_file(self._ws.calibration / TOKENS)["input_ids"], calibration
        else:
            changes = {
                "samples": asked.windows,
                "sequence_length": asked.sequence_length or self._settings.calibration.sequence_length,
                "seed": asked.seed,
            }
            of_recovery = self._settings.calibration.model_copy(update=changes)
            settings = self._settings.model_copy(update={"calibration": of_recovery})
            try:
                windows, record = drawn_windows(self._ws, settings)
            except InputError as error:
                raise InputError(f"recover.windows: {error}") from None
        held_back = held_back_windows(len(windows), self._recipe.validation_share)
        return windows, {
            "source": record["source"],
            "texts": record["texts"],
            "digest": record["digest"],
            "windows": len(windows),
            "sequence_length": windows.shape[1],
            "tokens": windows.numel(),
            "held_back": held_back,
            "drawn": is_drawn,
        }

    def _check_memory(self) -> None:
        """Refuse, before any work, what cannot fit: both models, gradients and moments."""
        base = Checkpoint(self._ws.base)
        weights = sum(torch.Size(base.shape(name)).numel() for name in base.stored)
        masked = sum(mask.numel() for mask in self._masks.values())
        trained = {"norms": 0, "lora": 0, "all": weights}.get(self._recipe.train, masked)
        teacher = 0 if self._recipe.teacher == "stored" else (2 if self._autocast else 4)
        needed = (4 + teacher) * weights + 12 * trained
        on_host = self._device.type == "cpu"
        free = free_host_memory() if on_host else free_device_memory(self._device)
        if needed > free:
            raise InputError(
                f"Recovery needs {needed / 1e9:.1f} GB for both models, gradients and moments, and {free / 1e9:.1f} GB "
                f"are free. {_LOWER}"
            )

    def _train(self, on_step: OnStep) -> None:
        teacher = self._teacher()
        student = Student(
            load_model(self._ws.base, torch.float32),
            Checkpoint(self._ws.base),
            self._masks,
            self._pruned,
            self._recipe.train,
            self._recipe.lora_rank,
            self._recipe.seed,
            None if self._is_sharded else self._device,
        )
        if self._is_sharded:
            student.divide(self._ranks, self._device)
        training = Recovery(
            *(student, teacher, self._windows, self._recipe, self._folder),
            ranks=self._ranks,
            autocast=self._autocast,
        )
        if training.state.step and self._ranks.is_first:
            logger.info("recover: goes on behind step %d of %d", training.state.step, self.steps)
        with _same_bytes_again(self._device):
            state = training.run(on_step)
            as_stored = training.held_back_loss()
        values = student.stored_values() if state.best_step else {}
        if self._ranks.is_first:
            self._write(values, state, as_stored)
        self._ranks.wait()

    @property
    def _is_sharded(self) -> bool:
        return self._settings.recover.sharded and self._ranks.size > 1

    def _teacher(self) -> Teacher:
        recipe, file = self._recipe, self._folder / _TEACHER
        if recipe.teacher == "live":
            return LiveTeacher(self._dense(), self._windows[0], recipe.temperature, with_layers=recipe.mse > 0)
        if self._ranks.is_first and not file.exists():
            with progress_bar(len(self._windows), "ask the teacher", "windows") as advance:
                store_teacher(self._dense(), self._windows, file, recipe.top_k, recipe.temperature, advance)
        self._ranks.wait()
        return StoredTeacher(file, recipe.temperature)

    def _dense(self) -> Any:
        model: Any = load_model(self._ws.base, self._autocast or torch.float32)
        if self._is_sharded:
            divide(model, self._ranks, self._device)
            return model
        return model.to(self._device)

    def _write(self, values: dict[str, Tensor], state: State, as_stored: float | None) -> None:
        with complete_folder(self._folder / _RESULT) as folder:
            updates = None
            if state.best_step:
                (folder / UPDATES).mkdir()
                by_file: dict[str, dict[str, Tensor]] = {}
                for name, value in values.items():
                    number = re.search(r"\.(\d+)\.", name)
                    by_file.setdefault(f"{int(number[1]):03d}" if number else "outside", {})[name] = value
                for stem, some in by_file.items():
                    keep = {name: self._masks[name] for name in some if name in self._masks}
                    save_updates(some, keep, folder / UPDATES / f"{stem}.safetensors")
                found = updates_in(folder / UPDATES)
                updates = {
                    "folder": UPDATES,
                    "digest": found.digest,
                    "tensors": sorted(found),
                    "tuned": found.tuned(self._masks),
                }
            else:
                logger.warning("Recovery found nothing better than the model as it was pruned: nothing was changed")
            write_json(folder / RECORD, self._record(state, as_stored, updates))

    def _record(self, state: State, as_stored: float | None, updates: dict[str, Any] | None) -> dict[str, Any]:
        trained = [entry["loss"] for entry in state.history if "loss" in entry]
        looked = [entry["held_back"] for entry in state.history if "held_back" in entry]
        per_step = windows_a_step(self._recipe.step_tokens, self._text["sequence_length"])
        return {
            "format": FORMAT,
            "trained": True,
            "fingerprint": self.fingerprint,
            "base": self._inputs["base"],
            "teacher": self._inputs["base"],
            "masks": self._inputs["masks"],
            "pruned_updates": self._inputs["updates"],
            "settings": self._recipe.named,
            "text": self._text,
            "engine": self._engine,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("torch", "transformers", "safetensors")},
            },
            "steps": state.step,
            "best_step": state.best_step,
            "tokens": state.step * per_step * self._text["sequence_length"],
            "loss": {"first": trained[0], "last": trained[-1]},
            # Of the windows held back: as pruned, at its lowest, at the end, and of the values as they are stored.
            "held_back": {"start": looked[0], "best": state.best, "end": looked[-1], "stored": as_stored}
            if looked
            else None,
            "history": state.history,
            "updates": updates,
        }

    def _watch(self, on_step: OnStep) -> None:
        """Several processes train; this one tells what they write down."""
        self._folder.mkdir(parents=True, exist_ok=True)
        told = self._folder / _STEPS
        told.unlink(missing_ok=True)  # of a run that was killed
        processes = JoinedProcesses(self._ws, self._settings, self._folder, "recover")
        seen, step = 0, 0

        def is_done() -> bool:
            nonlocal seen, step
            done = (self._folder / _RESULT).is_dir()
            lines = told.read_text(encoding="utf-8").split("\n")[:-1] if told.exists() else []
            for line in lines[seen:]:
                entry = json.loads(line)
                step = entry["step"]
                on_step(entry)
            seen = len(lines)
            return done

        try:
            processes.wait_for(is_done, "Recovery", lambda: f"behind step {step}")
        finally:
            processes.close()

    def note_step(self, entry: dict[str, Any]) -> None:
        """What rank 0 does with each entry: write it down for the process that waits."""
        if self._ranks.is_first:
            with (self._folder / _STEPS).open("a", encoding="utf-8") as file:
                file.write(canonical_json(entry) + "\n")

    def _refuse_another_s(self) -> None:
        """Refuse to begin what was begun on another kind of device or with other processes: the bytes would differ."""
        if any(self._folder.glob("state_*.safetensors")) or not self._ranks.is_first or not self._ws.work.is_dir():
            return
        for path in self._ws.work.glob(f"*/{_INPUTS}"):
            begun = read_json(path)
            if begun["inputs"] == self._inputs and begun["engine"] != self._engine:
                then, now = (
                    f"{each['device']} in {each['dtype']} with {each['processes']} process(es)"
                    + (f" on {each['nodes']} nodes" if "nodes" in each else "")
                    + (", sharded," if "sharded" in each else "")
                    for each in (begun["engine"], self._engine)
                )
                raise InputError(
                    f"This recovery was begun on {then} and would end in other bytes on {now}. Go on where it was "
                    "begun (section engine of params.yaml), or begin it anew: dass run --restart"
                )


def forget_states(ws: Workspace) -> int:
    """Remove what unfinished recoveries have left, of any device.

    Returns:
        How many there were.
    """
    begun = [path.parent for path in ws.work.glob(f"*/{_INPUTS}")]
    for folder in begun:
        shutil.rmtree(folder)
    return len(begun)


@contextmanager
def _same_bytes_again(device: torch.device) -> Iterator[None]:
    """Kernels that give the same bytes each time. Only CUDA has others."""
    if device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
