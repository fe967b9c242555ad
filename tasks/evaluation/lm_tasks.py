"""lm_eval's tasks as they are asked here: its own prompt, choices and metrics; the documents from files, or the hub.

Imports lm_eval, which takes seconds: import this inside a function.
"""

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lm_eval import evaluate as lm_eval_evaluate
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from dass.errors import InfrastructureError, InputError
from dass.files import digest_of
from tasks.evaluation.quiet import quiet
from tasks.evaluation.scored import Scored, scored
from tasks.evaluation.task_fields import check_fields, wanted_fields
from tasks.sources.hub import HubId, fetch_data_set
from tasks.sources.task_data import ASKED, ON_HUB, task_sources
from tasks.sources.task_definitions import Definition, single_tasks
from tasks.sources.task_rows import Documents, read_task_documents
from tasks.workspace.settings import Evaluate, Source

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class AskedTask:
    """A task with its documents, ready to be asked.

    Attributes:
        name: lm_eval's.
        task: lm_eval's task, its number of examples set.
        documents: how many documents are asked.
        shots: examples before each question.
        data: what the documents are: {split: sha256} of files, or {"hub": commit}.
        digest: of the definition and all its settings.
    """

    name: str
    task: ConfigurableTask
    documents: int
    shots: int
    data: dict[str, str | None]
    digest: str

    @property
    def version(self) -> str:
        return str(self.task.VERSION)

    def requests(self) -> int:
        """How many a model is asked, by the choices of the first document."""
        choices = (
            self.task.doc_to_choice(self.task.eval_docs[0]) if self.task.OUTPUT_TYPE == "multiple_choice" else [""]
        )
        return self.documents * len(choices)

    def texts(self) -> Iterator[str]:
        """Each document's question with its choices, as a person would read it."""
        for document in islice(self.task.eval_docs, self.documents):
            choices = self.task.doc_to_choice(document) if self.task.OUTPUT_TYPE == "multiple_choice" else []
            yield " ".join([str(self.task.doc_to_text(document)), *map(str, choices)])


def asked_tasks(evaluate: Evaluate, pins: Mapping[str, Any] | None, root: Path) -> list[AskedTask]:
    """Every task of `evaluate.tasks`, groups taken apart, with every document that is asked looked at.

    Args:
        evaluate: the settings.
        pins: what dass.lock.json says of the tasks' sources; None asks no questions.
        root: the folder that relative paths start from.

    Raises:
        InputError: a task or a file cannot be used. The message names the task, and the line and field where there is
            one.
        InfrastructureError: the hub does not answer.
    """
    definitions = single_tasks(evaluate.tasks)
    sources = task_sources(evaluate)
    with quiet():
        return [
            _asked(name, definitions[name], each, None if pins is None else pins.get(name, {}), evaluate, root)
            for name, each in sources.items()
        ]


def _asked(
    name: str,
    definition: Definition,
    sources: dict[str, Source],
    pins: Mapping[str, Any] | None,
    evaluate: Evaluate,
    root: Path,
) -> AskedTask:
    config = _config(name, definition)
    shots = _shots(name, config, evaluate.num_fewshot)
    config["num_fewshot"] = shots
    digest = digest_of({key: _described(value) for key, value in config.items()})
    files: dict[str, Documents] = {}
    if ON_HUB in sources:
        hub, commit = HubId(str(sources[ON_HUB].uri), None), ((pins or {}).get(ON_HUB) or {}).get("revision")
        data_set = _from_hub(name, hub, commit, config)
        data: dict[str, str | None] = {ON_HUB: commit}
        _check_examples(name, config, shots, {split: len(rows) for split, rows in data_set.items()})
    else:
        asked = _asked_split(config)
        for split, source in sources.items():
            files[asked if split == ASKED else split] = read_task_documents(source, (pins or {}).get(split), root)
        _check_splits(name, config, asked, list(files))
        _check_examples(name, config, shots, {split: len(documents.rows) for split, documents in files.items()})
        for each in files.values():
            check_fields(name, wanted_fields(config), each)
        data_set = DatasetDict({split: _rows(name, each) for split, each in files.items()})
        data = {split: each.sha256 for split, each in files.items()}
        config |= {split: config.get(split) if config.get(split) in files else None for split in _SPLITS}
    task = _task(name, config, data_set)
    documents = _check_documents(name, task, evaluate.limit, files.get(_asked_split(config)))
    return AskedTask(name, task, documents, shots, data, digest)


def _config(name: str, definition: Definition) -> dict[str, Any]:
    """lm_eval's definition, as its own loader reads it.

    Raises:
        InputError: it needs what is not given here: code that the model writes, pictures, sound.
    """
    config: dict[str, Any] = load_yaml(Path(str(lm_eval_tasks.__file__)).parent / definition.file)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    for key, what in (("unsafe_code", "runs code that the model writes"), ("doc_to_image", "shows the model pictures")):
        if config.get(key):
            raise InputError(f"evaluate.tasks: {name} {what}, which is not done here. Choose another task.")
    if config.get("doc_to_audio"):
        raise InputError(f"evaluate.tasks: {name} plays the model sounds, which is not done here. Choose another task.")
    return config


def _described(value: Any) -> Any:
    """A function of lm_eval's by name: its release is part of what is digested beside this."""
    if isinstance(value, dict):
        return {str(key): _described(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else getattr(value, "__name__", "?")


def _shots(name: str, config: Mapping[str, Any], wanted: int | None) -> int:
    """As lm_eval decides it: a task that says 0 itself stays at 0."""
    own = config.get("num_fewshot")
    if wanted and own == 0:
        logger.warning("%s is asked without examples, whatever evaluate.num_fewshot says: its definition sets 0", name)
    return int(own or 0) if wanted is None or own == 0 else wanted


def _asked_split(config: Mapping[str, Any]) -> str:
    """Whose documents lm_eval asks."""
    return str(config.get("test_split") or config.get("validation_split"))


def _check_splits(name: str, config: Mapping[str, Any], asked: str, given: list[str]) -> None:
    known = [split for split in dict.fromkeys(config.get(key) for key in _SPLITS) if split]
    for split in given:
        if split not in known:
            raise InputError(f"evaluate.task_files: {name} has no split {split!r}: expected {', '.join(known)}.")
    if asked not in given:
        raise InputError(f"evaluate.task_files: {name} asks its split {asked}, and no file is given for that. Add it.")


def _check_examples(name: str, config: Mapping[str, Any], shots: int, sizes: Mapping[str, int]) -> None:
    """Refuse examples from a split that is not there, or has too few."""
    fewshot = config.get("fewshot_config") or {}
    if not shots or fewshot.get("samples") is not None:
        return
    keys = ("fewshot_split", "training_split", "validation_split")
    split = str(fewshot.get("split") or next((config[key] for key in keys if config.get(key)), ""))
    there = f"there is {', '.join(sizes)}" if sizes else "there is none"
    if split not in sizes:
        wanted = f"its split {split}" if split else "a split of their own"
        raise InputError(
            f"evaluate.num_fewshot: the {shots} examples of {name} come from {wanted}, and {there}. "
            f"Give it (evaluate.task_files: {{{name}: {{SPLIT: FILE}}}}) or set evaluate.num_fewshot to 0."
        )
    if sizes[split] < shots + (split == _asked_split(config)):
        raise InputError(
            f"evaluate.num_fewshot is {shots}: the split {split} of {name} has {sizes[split]} documents. Use fewer."
        )


def _rows(name: str, documents: Documents) -> Dataset:
    try:
        return Dataset.from_list(documents.rows)
    except Exception as error:  # a field that is a number here and a text there, in pyarrow's words
        raise InputError(
            f"{documents.name} cannot be documents of {name}: {_first_line(error)}. Expected the same kind of value in "
            "a field of every line."
        ) from error


def _from_hub(name: str, hub: HubId, commit: str | None, config: dict[str, Any]) -> DatasetDict:
    options = dict(config.get("dataset_kwargs") or {})
    options.pop("trust_remote_code", None)  # never run here
    try:
        return fetch_data_set(hub, commit, config.get("dataset_name"), options)
    except (InputError, InfrastructureError) as error:
        raise type(error)(
            f"evaluate.tasks: {name} wants its documents from the hub. {error} Local documents are given with "
            f"evaluate.task_files: {{{name}: FILE}}."
        ) from error


def _task(name: str, config: dict[str, Any], data_set: DatasetDict) -> ConfigurableTask:
    fewshot = dict(config.get("fewshot_config") or {})
    if fewshot.get("split") not in data_set:
        fewshot.pop("split", None)
    given = {**config, "custom_dataset": lambda **_: data_set, "dataset_kwargs": None}
    if fewshot:
        given["fewshot_config"] = fewshot
    try:
        return ConfigurableTask(config=given)
    except Exception as error:  # whatever a document makes lm_eval's templates and functions raise
        raise InputError(
            f"evaluate.tasks: lm_eval cannot make {name} of its documents ({_told(error)}). It wants the fields "
            f"{', '.join(wanted_fields(config))}."
        ) from error


def _check_documents(name: str, task: ConfigurableTask, limit: int | None, file: Documents | None) -> int:
    """Look at every document that is asked as lm_eval will, and count them."""
    documents = task.eval_docs
    if limit is not None and limit > len(documents):
        raise InputError(
            f"evaluate.limit is {limit}: {name} has {len(documents)} documents. Use at most that, or null for all."
        )
    asked = len(documents) if limit is None else limit
    for index in range(asked):
        place = f"document {index} of {name}"
        if file is not None and len(file.rows) == len(documents):
            place = f"{file.where(index)}: task {name}"
        _check_document(place, task, documents[index])
    return asked


def _check_document(place: str, task: ConfigurableTask, document: dict[str, Any]) -> None:
    try:
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    except Exception as error:  # as in _task
        raise InputError(f"{place} cannot be read ({_told(error)}): {_wants(task)}.") from error
    if task.OUTPUT_TYPE != "multiple_choice" or choices is None:
        return
    gold = text if task.multiple_input else target
    for each in gold if isinstance(gold, list) else [gold]:
        is_one = 0 <= each < len(choices) if isinstance(each, int) else each in choices
        if not is_one:
            raise InputError(f"{place} has the answer {each!r}, none of its {len(choices)} choices: {_wants(task)}.")


def _wants(task: ConfigurableTask) -> str:
    return f"lm_eval's definition reads {', '.join(wanted_fields(vars(task.config)))}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def ask(each: AskedTask, model: LM, evaluate: Evaluate) -> tuple[Scored, int]:
    """Let lm_eval ask a model every document, and compute its figures.

    Returns:
        What it found, and how many requests lost their beginning to the model's context.
    """
    with quiet() as told:
        random.seed(evaluate.seed)
        np.random.seed(evaluate.seed)
        torch.manual_seed(evaluate.seed)
        each.task.set_fewshot_seed(evaluate.seed)
        results = lm_eval_evaluate(model, {"tasks": {each.name: each.task}}, limit=evaluate.limit)
    chooses = each.task.OUTPUT_TYPE == "multiple_choice"
    target_of = each.task.doc_to_text if each.task.multiple_input else each.task.doc_to_target
    return scored(results, each.name, chooses, each.task.doc_to_choice, target_of), told.truncated
