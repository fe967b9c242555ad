"""The documents of a zero-shot task out of a file: JSONL, a JSON array or parquet, a row each, with all its fields."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.sources.hub import HubId
from tasks.sources.locate import check_digest, locate, uri_of
from tasks.sources.text_rows import first_line, lines, whole
from tasks.sources.unpack import LARGEST, bound_of, too_large, unpack
from tasks.workspace.settings import Source

_KNOWN = "expected JSONL, a JSON array of objects, or parquet"
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Documents:
    """The documents of one split.

    Attributes:
        name: the file's.
        rows: each document's fields.
        places: where each stands in the file: "line 3".
        sha256: of the file.
    """

    name: str
    rows: list[dict[str, Any]]
    places: list[str]
    sha256: str

    def where(self, index: int) -> str:
        return f"{self.name} {self.places[index]}"


def read_task_documents(source: Source, pin_: dict[str, Any] | None = None, root: Path = Path()) -> Documents:
    """The documents in a local file.

    Args:
        source: the file.
        pin_: what dass.lock.json says of it; None asks no questions.
        root: the folder that relative paths start from.

    Raises:
        InputError: it is missing, damaged, empty, in another form, or not what `pin_` says.
    """
    path = locate(source, root)
    if isinstance(path, HubId) or path.is_dir():
        what = "a folder" if isinstance(path, Path) else "no file here"
        raise InputError(f"{uri_of(source)} is {what}: {_KNOWN}.")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(f"{path} has {size} bytes: at most {LARGEST} are read. Cut a part out of it.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    found = hashlib.sha256(content).hexdigest()
    check_digest(source, found, pin_)
    numbered = list(_numbered(content, path.name))
    if not numbered:
        raise InputError(f"{path} holds no document: {_KNOWN}.")
    return Documents(path.name, [row for _, row in numbered], [place for place, _ in numbered], found)


def _numbered(content: bytes, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    plain, plain_name = unpack(content, name)
    if plain_name.lower().endswith(".parquet") or (plain.startswith(_PARQUET) and plain.endswith(_PARQUET)):
        return _of_parquet(plain, name)
    try:
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): {_KNOWN}.") from None
    try:
        return _of_array(text, name) if text.lstrip().startswith("[") else _of_lines(text, name)
    except RecursionError:
        raise InputError(f"{name} holds JSON that is nested too deeply: {_KNOWN}.") from None


def _of_lines(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for number, line in enumerate(lines(text), start=1):
        if line.strip():
            place = f"line {number}"
            try:
                row = json.loads(line, object_pairs_hook=_unrepeated)
            except ValueError as error:
                raise InputError(f"{name} {place} is not JSON ({first_line(error)}): {_KNOWN}.") from None
            found.append((place, _object(row, f"{name} {place}")))
    return found


def _of_array(text: str, name: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(text, object_pairs_hook=_unrepeated)
    except ValueError as error:
        raise InputError(f"{name} is not JSON ({first_line(error)}): {_KNOWN}.") from None
    return [(f"entry {n}", _object(row, f"{name} entry {n}")) for n, row in enumerate(rows, start=1)]


def _of_parquet(content: bytes, name: str) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    with whole(name, "parquet"):
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > bound_of(len(content)):
            raise too_large(name, len(content))
        return [(f"row {number}", row) for number, row in enumerate(file.read().to_pylist(), start=1)]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object: {_KNOWN}.")
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the field {repeated[0]!r} is there twice")
    return dict(pairs)
