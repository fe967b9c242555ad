"""Which fields of a document a task's definition reads: what a file must have in every line."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from dass.errors import InputError
from tasks.sources.task_rows import Documents

_READERS = ("doc_to_text", "doc_to_target", "doc_to_choice")
_SUBSCRIPT = re.compile(r"\b(?:doc|x|row|example|item|sample)\[\s*[\"'](\w+)[\"']\s*\]")


def wanted_fields(config: Mapping[str, Any]) -> list[str]:
    """The fields of a document that lm_eval's definition of a task reads, in the order it names them."""
    if config.get("process_docs") is not None:  # it makes documents of other fields out of these
        return _fields(config["process_docs"])
    found: dict[str, None] = {}
    for reader in _READERS:
        found |= dict.fromkeys(_fields(config.get(reader)))
    return list(found)


def _fields(reader: Any) -> list[str]:
    if callable(reader):
        try:
            return list(dict.fromkeys(_SUBSCRIPT.findall(inspect.getsource(reader))))
        except (OSError, TypeError):
            return []
    if not isinstance(reader, str):
        return []
    if "{{" not in reader and "{%" not in reader:
        return [reader] if reader.isidentifier() else []
    from jinja2 import Environment, meta

    names = meta.find_undeclared_variables(Environment().parse(reader))
    optional = {name for name in names if re.search(rf"\b{name}\s+is\s+(not\s+)?(un)?defined\b", reader)}
    return sorted(names - optional, key=reader.index)


def check_fields(task: str, fields: list[str], documents: Documents) -> None:
    """Refuse documents that lack a field.

    Raises:
        InputError: file, line and field, and what the task wants.
    """
    for index, row in enumerate(documents.rows):
        for field in fields:
            if row.get(field) is None:
                what = "null for" if field in row else "no"
                raise InputError(
                    f"{documents.where(index)} has {what} field {field!r}: task {task} wants {', '.join(fields)}, as "
                    f"lm_eval's data set has them. Mend that {documents.places[index].split()[0]}."
                )
