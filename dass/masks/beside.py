"""What lies beside the weights of a pruned checkpoint: written from its base, and proved against that base.

The proof writes those files again, by the very function that wrote them first, and compares bytes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file
from dass.masks.proof import ProofError
from dass.masks.pruned_record import RECORD, write_record
from dass.model.checkpoint_folder import INDEX_FILE, Contents, contents, copy_beside
from dass.model.older_keys import write_older_keys
from dass.model.references import drop_references

_SHOWN = 80  # characters of a value


def write_beside(base: Path, found: Contents, folder: Path) -> tuple[list[str], list[str]]:
    """Write config, tokenizer, chat templates, licence and card of a base's pruned checkpoint.

    Args:
        base: the dense checkpoint's folder.
        found: `contents(base)`.
        folder: where to.

    Returns:
        Names of the files, and what was left out of them (`drop_references`).
    """
    names = [*found.beside, *copy_beside(base, found, folder)]
    dropped = drop_references(folder)
    write_older_keys(folder)
    return names, dropped


def prove_beside(
    base: Path,
    pruned: Path,
    weights: Mapping[str, str],
    settings: Mapping[str, Any] | None,
    history: Mapping[str, Any] | None,
) -> list[str]:
    """Compare every file of a pruned checkpoint but its weights with what pruning its base writes. No tensor is read.

    Args:
        base: the dense checkpoint's folder.
        pruned: the one in question.
        weights: name -> sha256 of the pruned weight files, which dass.json repeats.
        settings: what was asked for, as dass.json has it.
        history: how the base was pruned before (`dass.masks.pruned_record.history`).

    Returns:
        Names of the files compared, sorted.

    Raises:
        ProofError: names the first file that is missing, extra or differs, and the first key where it is JSON.
        InputError: the base is no checkpoint.
    """
    found = contents(base)
    in_weights = [name for name in found.weights if name != INDEX_FILE]
    for name in in_weights:
        if name not in weights:
            raise ProofError(f"{name} is missing: the base has it.")
    with TemporaryDirectory() as scratch:
        expected = Path(scratch)
        names, _ = write_beside(base, found, expected)
        if INDEX_FILE in found.weights:
            shutil.copyfile(base / INDEX_FILE, expected / INDEX_FILE)
            names.append(INDEX_FILE)
        digests = {name: sha256_file(expected / name) for name in names}
        write_record(expected, digests | {name: weights[name] for name in in_weights}, settings, history)
        wanted, present = files_in(expected), files_in(pruned)
        for name in sorted({*wanted, *present}.difference(in_weights)):
            if name not in present:
                raise ProofError(f"{name} is missing: pruning this base writes it.")
            if name not in wanted:
                raise ProofError(f"{name} is extra: pruning this base writes no such file.")
            if told := difference(wanted[name], present[name]):
                raise ProofError(f"{name}: {told}.")
    return sorted([*names, RECORD])


def difference(expected: Path, found: Path) -> str | None:
    """How a file differs from what was expected, in a few words; None when it has the same bytes."""
    if not found.is_file():  # a pipe would never end
        return "it is no file"
    if found.stat().st_size == expected.stat().st_size and sha256_file(found) == sha256_file(expected):
        return None
    try:
        ours, theirs = read_json(expected), read_json(found)
        first = next(differing_keys(ours, theirs), None)
    except (InputError, RecursionError):
        return "it differs from the expected bytes"
    return first or "it holds the expected values, and is written in another way"


def differing_keys(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ, and how, in order: "rope_theta is 5.0, expected 10000.0"."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted({*expected, *found}):
            name = f"{where}.{key}" if where else key
            if key not in found:
                yield f"{_shown(name)} is missing, expected {_value(expected[key])}"
            elif key not in expected:
                yield f"{_shown(name)} is {_value(found[key])}, expected no such key"
            else:
                yield from differing_keys(expected[key], found[key], name)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            yield from differing_keys(ours, theirs, f"{where}[{index}]")
    elif _value(expected, None) != _value(found, None):
        yield f"{_shown(where) or 'it'} is {_value(found)}, expected {_value(expected)}"


def _value(value: Any, most: int | None = _SHOWN) -> str:
    text = json.dumps(value, sort_keys=True)  # escapes what a terminal would take for a command
    return text if most is None else shorten(text, most, placeholder=" ...") if " " in text else text[:most]


def _shown(name: str) -> str:
    return json.dumps(name)[1:-1][:_SHOWN]
