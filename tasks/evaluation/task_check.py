"""What can be known of zero-shot tasks before any work: their names, every document, the tokenizer."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import digest_of, read_json, write_json
from tasks.sources.pinned import pin, read_pins
from tasks.sources.task_data import ON_HUB, task_sources
from tasks.sources.task_definitions import lm_eval_version, single_tasks
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tasks(ws: Workspace, settings: Settings) -> None:
    """Refuse tasks that cannot be asked. What was checked once is not read again.

    Raises:
        InputError: a name is no task's, or its documents cannot be used.
        InfrastructureError: the hub does not answer.
    """
    if not settings.evaluate.tasks:
        return
    pins: dict[str, Any] = read_pins(ws)["sources"].get("tasks", {}) if ws.lock_file.exists() else {}
    stands_for = {
        task: {
            split: pins.get(task, {}).get(split) if split == ON_HUB else pin(source, ws.root)
            for split, source in each.items()
        }
        for task, each in task_sources(settings.evaluate).items()
    }
    asked = settings.evaluate.model_dump(include={"tasks", "task_files", "limit", "num_fewshot"})
    checked = {"digest": digest_of([asked, stands_for, lm_eval_version()])}
    memo = ws.private / "tasks-checked.json"
    with suppress(OSError, ValueError):
        if read_json(memo) == checked:
            return
    from tasks.evaluation.lm_tasks import asked_tasks  # here: lm_eval takes seconds

    asked_tasks(settings.evaluate, stands_for, ws.root)
    write_json(memo, checked)


def check_tokenizer(ws: Workspace, settings: Settings) -> None:
    """Refuse a base whose tokenizer lacks a token that a task needs. Call when artifacts/base is there.

    Raises:
        InputError: it is missing.
    """
    if settings.evaluate.tasks:
        from dass.model.pretrained import load_tokenizer

        writes = any(each.writes for each in single_tasks(settings.evaluate.tasks).values())
        check_tokenizer_serves(ws.base, load_tokenizer(ws.base), writes)


def check_tokenizer_serves(folder: Path, tokenizer: "PreTrainedTokenizerBase", writes: bool) -> None:
    """Refuse a tokenizer without the token that a task needs.

    Args:
        folder: the checkpoint, for the message.
        tokenizer: its tokenizer.
        writes: whether a task lets the model write, which ends at EOS.

    Raises:
        InputError: it is missing.
    """
    if writes and tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer in {folder} names no EOS token, at which a written answer ends. Set eos_token in its "
            "tokenizer_config.json, or take tasks that let the model write out of evaluate.tasks."
        )
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise InputError(
            f"The tokenizer in {folder} names neither a BOS nor an EOS token, one of which lm_eval puts before a text "
            "that has no prompt. Set eos_token in its tokenizer_config.json."
        )
