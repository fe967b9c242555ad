"""The small files that people, git and other programs write into a workspace: YAML and JSON, read within bounds.

Whatever is wrong with one is told in a line: which file, where, and what to do.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from dass.errors import InputError
from tasks.workspace.folder import Workspace

LARGEST = 1 << 20
"""Bytes that such a file may have; params.yaml and dvc.yaml have some thousand."""
_VALUES, _DEPTH = 10_000, 50  # of its values, aliases followed
_BRACKETS = 200
_CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7})( |$)", re.MULTILINE)


def check_pipeline_files(ws: Workspace) -> None:
    """Refuse what git, an editor or a full disk has left of the files that DVC reads, before DVC reads them.

    An empty dvc.lock is no fault here: it says that nothing has run.

    Raises:
        InputError: params.yaml, dvc.yaml, dvc.lock or dass.lock.json is damaged, or larger than a pipeline needs.
    """
    for path, remedy in (
        (ws.params, "Restore it."),
        (ws.root / "dvc.yaml", "Restore it."),
        (ws.root / "dvc.lock", "Restore it, or delete it: dass run makes it anew."),
        (ws.lock_file, "Restore it, or delete it and run: dass pin"),
    ):
        if path.exists() and ((text := read_small(path, remedy)).strip() or path.name != "dvc.lock"):
            _check_mapping(text, path.name, remedy)


@lru_cache(maxsize=8)  # the same files, before each stage of a run
def _check_mapping(text: str, name: str, remedy: str) -> None:
    value = _parse_json(text, name, remedy) if name.endswith(".json") else parse_for_dvc(text, name, remedy)
    if not isinstance(value, dict):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{name} holds {kind}: expected keys with values. {remedy}")


def _parse_json(text: str, name: str, remedy: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON ({_first_line(error)}). {remedy}") from None


def read_small(path: Path, remedy: str = "Restore it.") -> str:
    """The text of a small file.

    Raises:
        InputError: it is no file, too large, not UTF-8, or holds a merge that was not resolved.
        FileNotFoundError: there is none.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file: expected text. Move it away. {remedy}")
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(f"{path} has {size} bytes: expected at most {LARGEST}. {remedy}")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text (byte {error.start}). {remedy}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    if match := _CONFLICT.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise InputError(
            f"{path.name} line {line} is a conflict marker ({match[1]}): a git merge is not resolved. Resolve it there "
            f"(git checkout --ours or --theirs {path.name}), then run again."
        )
    return text


def parse_yaml(text: str, name: str, remedy: str = "") -> Any:
    """YAML 1.2 with a bounded number of values: an alias costs what it stands for, each time.

    Raises:
        InputError: it is not YAML, or holds too many values or too deep ones.
    """
    if _brackets(text) > _BRACKETS:  # what reads YAML takes minutes to find that out
        raise _too_deep(name)
    try:
        # YAML 1.2: under 1.1 an unquoted 2:4 is the sexagesimal number 124.
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}"
        reason = _first_line(getattr(error, "problem", None) or error)
        raise InputError(f"{name}{line}: not YAML ({reason}). {remedy}".rstrip()) from None
    except RecursionError:
        raise _too_deep(name) from None
    if _count(value, name, {}, 0) > _VALUES:
        raise InputError(f"{name} holds more than {_VALUES} values, its aliases counted: expected a few dozen.")
    return value


def parse_for_dvc(text: str, name: str, remedy: str = "") -> Any:
    """YAML of a file that DVC reads, too. Its reader (libyaml) takes no ":" or "?" in brackets that is not quoted.

    Raises:
        InputError: as `parse_yaml`; or DVC would call the file corrupted.
    """
    value = parse_yaml(text, name, remedy)
    try:
        YAML(typ="safe").load(text)  # as DVC does
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        found = mark and _scalar_at(YAML(typ="safe", pure=True).compose(text), (mark.line, mark.column))
        where = name if mark is None else f"{name} line {mark.line + 1}"
        if found is None:
            reason = _first_line(getattr(error, "problem", None) or error)
            raise InputError(f"{where}: DVC cannot read it ({reason}). Put the values there in quotes.") from None
        key, written = found
        raise InputError(
            f"{where}: {key} has a text in brackets that DVC reads in quotes only. Write it there as "
            f"{json.dumps(written, ensure_ascii=False)}"
        ) from None
    return value


def _scalar_at(node: Node, place: tuple[int, int], key: str = "") -> tuple[str, str] | None:
    """The scalar that covers a line and column (from 0), and the key that leads to it; None: there is none."""
    if isinstance(node, ScalarNode):
        start, end = ((mark.line, mark.column) for mark in (node.start_mark, node.end_mark))
        return (key, node.value) if start <= place < end else None
    if isinstance(node, MappingNode):
        inside = [(each, f"{key}.{name.value}".lstrip(".")) for name, value in node.value for each in (name, value)]
    else:
        inside = [(each, key) for each in node.value]
    return next((found for each, named in inside if (found := _scalar_at(each, place, named))), None)


def _brackets(text: str) -> int:
    """How many brackets are open at once, those in comments and quotes too."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _count(value: Any, name: str, counted: dict[int, int], depth: int) -> int:
    """How many values there are, one a line of text: those behind an alias are counted once and added each time."""
    if depth > _DEPTH:
        raise _too_deep(name)
    if not isinstance(value, dict | list):
        return 1 + len(value) // 100 if isinstance(value, str) else 1
    if id(value) not in counted:
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(item, name, counted, depth + 1) for item in inside)
    return counted[id(value)]


def _too_deep(name: str) -> InputError:
    return InputError(f"{name} holds values that are nested deeper than {_DEPTH}: expected sections with values.")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {repeated[0]!r} is there twice")
    return dict(pairs)


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
