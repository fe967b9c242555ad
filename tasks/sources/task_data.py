"""Where the documents of each zero-shot task come from: files that the settings name, or a data set on the hub."""

from typing import Any

from dass.errors import InputError
from tasks.sources.task_definitions import Definition, check_task_names, single_tasks
from tasks.workspace.settings import Evaluate, Source

ON_HUB = "hub"
"""What stands for a split where the documents are the hub's."""
ASKED = "documents"
"""What stands for the split that is asked, where the settings name one file only."""


def task_sources(evaluate: Evaluate) -> dict[str, dict[str, Source]]:
    """Task -> split -> source, of all tasks that are asked.

    Raises:
        InputError: a name is no task's, a file cannot be one, or a task has neither a file nor a data set on the hub.
    """
    if not evaluate.tasks:
        return {}
    check_task_names(list(evaluate.task_files), "evaluate.task_files")
    tasks = single_tasks(evaluate.tasks)
    for name, files in evaluate.task_files.items():
        if name in evaluate.tasks and name not in tasks:
            raise InputError(f"evaluate.task_files: {name} is a group of tasks. Name a file for each of its tasks.")
        for uri in [files] if isinstance(files, str) else files.values():
            if uri.startswith("pypi://"):
                raise InputError(f"evaluate.task_files: {name} is {uri}: expected a local file of JSONL or parquet.")
    return {name: _sources(name, each, evaluate.task_files.get(name)) for name, each in tasks.items()}


def _sources(name: str, definition: Definition, files: Any) -> dict[str, Source]:
    if isinstance(files, str):
        return {ASKED: Source(uri=files)}
    if files:
        return {split: Source(uri=uri) for split, uri in files.items()}
    if definition.data_set.count("/") != 1:
        data_set = definition.data_set or "made by its own code"
        raise InputError(
            f"evaluate.tasks: the documents of {name} are no data set of the hub's ({data_set}). "
            f"Give them: evaluate.task_files: {{{name}: FILE}}"
        )
    return {ON_HUB: Source(uri=definition.data_set)}
