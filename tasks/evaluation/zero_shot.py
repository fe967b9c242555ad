"""Stage `tasks`: what the dense and the pruned model answer to the documents of zero-shot tasks, one by one.

lm_eval asks, with its own prompts, choices and metrics. Each task is asked for itself: its figures do not depend on
which others are asked. What was answered is written down batch by batch, so an evaluation that was killed goes on
behind its last finished batch; what a dense model answered is kept for every workspace of this user.
"""

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, NumericalError
from dass.files import complete_folder, digest_of, read_json, sha256_file, write_json
from dass.masks.pruned_record import read_record
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_model, load_tokenizer
from tasks.evaluation.answers import ANSWERS, Answer, Row, write_answers
from tasks.evaluation.dense_cache import keep_answers, kept_answers
from tasks.evaluation.groups import group_entries
from tasks.evaluation.overlap import calibration_grams
from tasks.evaluation.paired import difference
from tasks.evaluation.request_log import RequestLog
from tasks.evaluation.scored import Scored, main_metric
from tasks.evaluation.task_check import check_tokenizer
from tasks.evaluation.task_verdicts import verdicts
from tasks.sources.pinned import read_pins
from tasks.sources.task_definitions import groups_with_means, single_tasks
from tasks.sources.tokens import encode
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tasks.evaluation.asked_model import HarnessModel
    from tasks.evaluation.lm_tasks import AskedTask

RESULT = "tasks.json"
_ENVIRONMENT = ("lm_eval", "torch", "transformers")  # what an answer's last digits depend on

logger = logging.getLogger("dass")


def evaluate_tasks(ws: Workspace, settings: Settings) -> None:
    """Stage `tasks`: ask artifacts/base and artifacts/pruned every document of `evaluate.tasks`.

    Writes artifacts/answers/answers.parquet and metrics/tasks.json, empty where no task is asked. They hold no times:
    the same checkpoints, documents and settings give the same bytes.

    Raises:
        InputError: a task, its documents or the tokenizer cannot be used; a stage before has not run.
        InfrastructureError: the hub does not answer.
        NumericalError: a model computes NaN.
    """
    rows: list[Row] = []
    record: dict[str, Any] = {"tasks": {}}
    if settings.evaluate.tasks:
        for folder, stage in ((ws.base, "sources"), (ws.calibration, "calibration"), (ws.pruned, "materialize")):
            if not folder.is_dir():
                raise InputError(f"No {folder}. Run: dass run, or dvc repro {stage}")
        check_tokenizer(ws, settings)
        from tasks.evaluation.lm_tasks import asked_tasks

        pins = read_pins(ws)["sources"].get("tasks", {})
        for name in single_tasks(settings.evaluate.tasks):
            if name not in pins:
                raise InputError(f"{ws.lock_file.name} does not name the documents of {name}. Run: dass pin")
        asked = asked_tasks(settings.evaluate, pins, ws.root)
        asking = _Asking(ws, settings)
        record, rows = asking.ask(asked)
        record["overlap"] = _overlaps(ws, asked, asking.tokenizer)
    with complete_folder(ws.answers) as folder:
        write_answers(folder / ANSWERS, rows)
        if rows:
            record["answers"] = {"rows": len(rows), "sha256": sha256_file(folder / ANSWERS)}
    write_json(ws.metrics / RESULT, record)
    shutil.rmtree(ws.batches, ignore_errors=True)


def _overlaps(ws: Workspace, asked: "list[AskedTask]", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """How much of each task the calibration windows hold, by name."""
    known = calibration_grams(ws)
    return {each.name: known.share_of(encode(tokenizer, text) for text in each.texts()) for each in asked}


@dataclass
class _Model:
    """One of the two: where it lies, and what its answers are told apart by."""

    name: str
    folder: Path
    digest: str


class _Asking:
    """One evaluation: both models, in one type, on one device, in batches of one size."""

    def __init__(self, ws: Workspace, settings: Settings) -> None:
        self.ws = ws
        self.evaluate = settings.evaluate
        self.device = choose_device(settings.engine.device)
        self.dtype = choose_dtype(settings.engine.dtype, Checkpoint(ws.base).main_dtype, self.device)
        self.tokenizer = load_tokenizer(ws.base)
        self.rows = _rows(self.evaluate.batch_size, len(self.tokenizer), self.device)
        pruned = read_record(ws.pruned)
        if pruned is None:
            raise InputError(f"{ws.pruned} has no dass.json that can be read. Run: dvc repro -s -f materialize")
        self.models = (
            _Model("dense", ws.base, read_json(ws.base / "source.json")["digest"]),
            _Model("pruned", ws.pruned, digest_of(pruned["files"])),
        )

    def ask(self, asked: "list[AskedTask]") -> tuple[dict[str, Any], list[Row]]:
        """metrics/tasks.json, and a row for each document."""
        dense, pruned = (self._ask_model(model, asked) for model in self.models)
        tasks, rows, told = {}, [], []
        for each in asked:
            entry, its_rows, its_verdicts = _compared(each, dense[each.name], pruned[each.name], self.evaluate.seed)
            tasks[each.name] = entry
            rows += its_rows
            told += its_verdicts
        for verdict in told:
            logger.warning("%s: %s", verdict["verdict"], verdict["told"])
        judged = [entry for entry in tasks.values() if entry["metric"] is not None]
        mean = {
            which: sum(entry[which][entry["metric"]] for entry in judged) / len(judged) for which in ("dense", "pruned")
        }
        groups = group_entries(groups_with_means(self.evaluate.tasks), dense, pruned, self.evaluate.seed)
        record = {"tasks": tasks, "settings": self._how(), "mean": mean if judged else None, "verdicts": told}
        return (record | {"groups": groups} if groups else record), rows

    def _ask_model(self, model: _Model, asked: "list[AskedTask]") -> dict[str, Scored]:
        """All tasks of one model, which is loaded when the first question is not answered yet, and once."""
        found = {}
        with ExitStack() as until_done:
            loaded: list[HarnessModel] = []

            def load() -> "HarnessModel":
                if not loaded:
                    from tasks.evaluation.asked_model import HarnessModel

                    network: Any = load_model(model.folder, self.dtype).to(self.device)  # type: ignore[arg-type]
                    loaded.append(HarnessModel(network, self.tokenizer, self.rows))
                    until_done.callback(loaded.clear)
                return loaded[0]

            for each in asked:
                found[each.name] = self._ask_task(model, each, load)
        return found

    def _ask_task(self, model: _Model, each: "AskedTask", load: "Callable[[], HarnessModel]") -> Scored:
        from tasks.evaluation.asked_model import LoggedModel
        from tasks.evaluation.lm_tasks import ask

        key = digest_of(self._answers_depend_on(model, each))
        kept = kept_answers(key) if model.name == "dense" else None
        log = RequestLog(kept or self.ws.batches / f"{model.name}-{key}.jsonl")
        name = f"{model.name} {each.name}"
        if kept is not None:
            logger.info("%s: answered before, as %s says", name, kept)
        elif log.batches:
            logger.info("%s: goes on behind batch %d", name, log.batches)
        try:
            with progress_bar(each.requests(), name, "requests") as advance:
                asked = LoggedModel(name, load, log, advance)
                scores, truncated = ask(each, asked, self.evaluate)
        except NumericalError as error:
            raise NumericalError(f"evaluate.tasks: {error}") from None
        if truncated:
            logger.warning(
                "%s: %d requests are longer than the model's context, and lost their beginning", name, truncated
            )
        if model.name == "dense" and log.path != kept_answers(key):
            keep_answers(key, log.path)
        return scores

    def _answers_depend_on(self, model: _Model, each: "AskedTask") -> dict[str, Any]:
        return {
            "checkpoint": model.digest,
            "task": each.name,
            "version": each.version,
            "definition": each.digest,
            "data": each.data,
            **self._how(),
        }

    def _how(self) -> dict[str, Any]:
        """What every answer depends on besides model and task."""
        return {
            "limit": self.evaluate.limit,
            "seed": self.evaluate.seed,
            "batch_size": self.rows,
            "dtype": _name(self.dtype),
            "device": self.device.type,
            "versions": {package: version_of(package) for package in _ENVIRONMENT},
        }


def _rows(setting: "str | int", vocabulary: int, device: "torch.device") -> int:
    """Requests computed at once: "auto" is a power of two whose logits take some 4 GiB where prompts are long.

    It does not depend on what memory is free just now: batches of another size have other last digits.
    """
    if setting != "auto":
        return int(setting)
    fit = (1 << 32) // (vocabulary * 12 * 512)  # logits, their log-softmax and a copy, of 512 tokens
    most = 16 if device.type == "cpu" else 64
    return 1 << min(max(fit, 1), most).bit_length() - 1


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


def _compared(
    each: "AskedTask", dense: Scored, pruned: Scored, seed: int
) -> tuple[dict[str, Any], list[Row], list[dict[str, str]]]:
    """A task's entry in metrics/tasks.json, its rows, and what cannot be trusted of it."""
    metric = main_metric(dense.figures, [*dense.answers, *pruned.answers])
    differences = {
        name: difference(_of(dense.answers, name), _of(pruned.answers, name), seed).as_json()
        for name in dense.figures
        if all(name in answer.scores for answer in [*dense.answers, *pruned.answers])
    }
    entry = {
        "documents": each.documents,
        "version": each.version,
        "num_fewshot": each.shots,
        "data": each.data,
        "metric": metric,
        "dense": dense.figures,
        "pruned": pruned.figures,
        "difference": differences,
    }
    rows = [
        Row(each.name, index, target, choices, ours, theirs, metric)
        for index, (target, choices, ours, theirs) in enumerate(
            zip(dense.targets, dense.choices, dense.answers, pruned.answers, strict=True)
        )
    ]
    counted = min(dense.counted, pruned.counted)
    models = {"dense": dense.answers, "pruned": pruned.answers}
    told = verdicts(each.name, each.documents, counted, dense.targets, models, differences, metric)
    return entry, rows, told


def _of(answers: list[Answer], metric: str) -> list[float]:
    return [answer.scores[metric] for answer in answers]
