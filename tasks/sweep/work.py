"""One point: masks, then what they cost, as `dass run` with these settings makes and measures them.

What another point has made or measured is taken: masks by the fingerprint of what they depend on, figures by the digest
of the masks. The dense model is loaded once for all points that a thread works on, and wears their masks in turn.
"""

import logging
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dass.errors import InputError, NumericalError
from dass.files import digest_of, read_json, sha256_file, write_json
from dass.masks.in_place import holds_as_stored, pruned_in_place
from dass.masks.mask_file import MaskFile
from dass.masks.updates import named_updates
from dass.model.checkpoint import Checkpoint
from tasks.evaluation.measured_model import MeasuredModel
from tasks.evaluation.stages import DENSE, RESULT, dtype_of, evaluate_pruned, measure_pruned
from tasks.evaluation.zero_shot import RESULT as TASKS
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.pruning.recovered import RECOVERY
from tasks.pruning.run import MANIFEST, MASKS, UPDATES, fingerprint_of, inputs_of
from tasks.pruning.stages import materialize, prune
from tasks.recovery.stages import recover
from tasks.registry.result import task_figures
from tasks.sweep.records import Record, Records, figures_of, remove_work
from tasks.versioning.code import code_digest
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted
from tasks.workspace.settings import Settings

logger = logging.getLogger("dass")

_code = cache(code_digest)  # what runs here stays what was imported
_STAGES = ("prune", "recover", "materialize", "evaluate", "tasks")


def key_of(ws: Workspace, settings: Settings) -> str:
    """Digest of everything that a point's figures depend on. Its base, calibration and dense evaluation are there."""
    return digest_of(
        {
            "settings": settings.model_dump(mode="json", include={"prune", "recover", "engine", "evaluate"}),
            "inputs": inputs_of(ws, settings),
            "dense": sha256_file(ws.evaluation / DENSE),
            "code": {stage: _code(stage) for stage in _STAGES},
        }
    )


def work_on(ws: Workspace, settings: Settings) -> Record:
    """Do a point, or find that it is done. What goes wrong is in its record.

    Args:
        ws: its base, calibration and dense evaluation are those of the settings.
        settings: the point's.
    """
    records, key = Records(ws), key_of(ws, settings)
    if (known := records.find(key)) is not None:
        return known
    try:
        record = _Point(ws, settings, records, key).record()
    except Exception as error:  # the others go on, whatever it is
        record = failed(key, error)
    records.keep(record)
    return record


def failed(key: str, error: Exception) -> Record:
    """The record of a point that came to nothing."""
    logger.debug("a point failed", exc_info=error)
    told = " ".join(redacted(str(error) or type(error).__name__).split())
    return Record(key, failed=told[:500], for_good=isinstance(error, InputError | NumericalError))


class _Point:
    """A point at work, in folders of its own beside the workspace's artifacts."""

    def __init__(self, ws: Workspace, settings: Settings, records: Records, key: str) -> None:
        self._root, self._settings, self._records, self._key = ws, settings, records, key
        self._fingerprint = fingerprint_of(inputs_of(ws, settings), settings.prune.plan)
        self._ws = replace(ws, point=records.work(key))
        self._seconds: dict[str, float] = {}

    def record(self) -> Record:
        """Everything there is to do, in order."""
        masks = self._masks()
        self._put_masks(masks)
        manifest = read_json(masks / MANIFEST)
        recovery = self._recovered()
        evaluation, tasks = self._measured(manifest, recovery)
        remove_work(self._records.work(self._key))
        trained = {
            name: recovery[name] for name in ("steps", "best_step", "tokens", "loss", "held_back") if name in recovery
        }
        return Record(
            self._key,
            self._fingerprint,
            manifest["masks"]["digest"],
            figures_of(evaluation, {"tasks": task_figures(tasks), "recover": trained}),
            self._seconds,
        )

    def _masks(self) -> Path:
        """The folder of masks, made by whichever point wants it first. A point that was killed goes on in its work."""
        done, work = self._records.masks(self._fingerprint), self._records.work(self._fingerprint)
        with self._records.alone(self._fingerprint):
            if not (done / MANIFEST).is_file():
                began = time.perf_counter()
                there = replace(self._root, point=work)
                prune(there, self._settings)
                done.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(there.masks, done)
                remove_work(work)
                self._took("prune", began)
        return done

    def _put_masks(self, masks: Path) -> None:
        """As the stages expect them: a link."""
        self._ws.masks.parent.mkdir(parents=True, exist_ok=True)
        self._ws.masks.unlink(missing_ok=True)
        self._ws.masks.symlink_to(masks)

    def _recovered(self) -> dict[str, Any]:
        began = time.perf_counter()
        recover(self._ws, self._settings)
        self._took("recover", began)
        found: dict[str, Any] = read_json(self._ws.recovered / RECOVERY)
        return found

    def _measured(self, manifest: dict[str, Any], recovery: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """metrics/evaluation.json and metrics/tasks.json of these weights."""
        depends_on = {
            "weights": [manifest[name]["digest"] if manifest[name] else None for name in ("base", "masks", "updates")],
            "recovery": (recovery.get("updates") or {}).get("digest"),
            "calibration": manifest["calibration"]["digest"],
            "dense": sha256_file(self._root.evaluation / DENSE),
            "settings": self._settings.model_dump(mode="json", include={"engine", "evaluate"}),
            "windows": self._settings.recover.model_dump(mode="json") if recovery["trained"] else None,
            "code": [_code("evaluate"), _code("tasks")],
        }
        name = digest_of(depends_on)
        path = self._records.measured(name)
        with self._records.alone(name):
            if not path.is_file():
                began = time.perf_counter()
                found = self._measure(manifest, recovery)
                write_json(path, found)
                self._took("evaluate", began)
        both = read_json(path)
        return both["evaluation"], both["tasks"]

    def _measure(self, manifest: dict[str, Any], recovery: dict[str, Any]) -> dict[str, Any]:
        ws, settings = self._ws, self._settings
        masks = MaskFile(ws.masks / MASKS)
        named = [(ws.masks / UPDATES, manifest["updates"]), (ws.recovered / UPDATES, recovery.get("updates"))]
        updates, _ = named_updates(masks, named)
        dense = None if settings.evaluate.tasks else _dense_model(ws, settings, {*masks, *updates})
        if dense is None:  # zero-shot tasks are asked of a checkpoint, and some models cannot wear masks
            materialize(ws, settings)
            evaluate_pruned(ws, settings)
        else:
            base = Checkpoint(ws.base)
            with pruned_in_place(dense, base, masks, updates) as tensors:
                model = MeasuredModel(ws.pruned, settings.engine, dtype_of(ws), dense)
                measure_pruned(ws, settings, model, tensors)
        evaluate_tasks(ws, settings)
        return {"evaluation": read_json(ws.metrics / RESULT), "tasks": read_json(ws.metrics / TASKS)}

    def _took(self, what: str, began: float) -> None:
        self._seconds[what] = round(time.perf_counter() - began, 3)


@dataclass(frozen=True)
class _Dense:
    """A dense model in memory.

    Attributes:
        loaded_for: base, type and device.
        model: None: it does not fit into memory.
        checked: the stored tensors that it has as parameters of their own.
    """

    loaded_for: tuple[Any, ...]
    model: PreTrainedModel | None
    checked: set[str] = field(default_factory=set)


_kept = threading.local()


def _dense_model(ws: Workspace, settings: Settings, names: set[str]) -> PreTrainedModel | None:
    """The base as it was measured, of this thread; None: it does not fit into memory, or cannot wear masks."""
    dtype = dtype_of(ws)
    wanted = (read_json(ws.base / "source.json")["digest"], dtype, settings.engine.device)
    known: _Dense | None = getattr(_kept, "dense", None)
    if known is None or known.loaded_for != wanted:
        _kept.dense = known = None  # its memory is wanted
        _kept.dense = known = _Dense(wanted, MeasuredModel(ws.base, settings.engine, dtype).model)
    if known.model is None or not holds_as_stored(known.model, Checkpoint(ws.base), names - known.checked):
        return None
    known.checked.update(names)
    return known.model
