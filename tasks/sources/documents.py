"""Texts out of a source: plain text, JSONL and parquet files, and data sets on the hub."""

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.sources.hub import HubId, fetch_rows
from tasks.sources.locate import check_digest, locate, uri_of
from tasks.workspace.settings import Source


@dataclass(frozen=True)
class Documents:
    """The texts of a source, in its order.

    Attributes:
        texts: one string a document. A plain text file is one long document.
        sha256: digest of the file; for a hub data set, of the texts themselves.
    """

    texts: list[str]
    sha256: str


def read_documents(source: Source, pin_: dict[str, Any] | None = None, root: Path = Path()) -> Documents:
    """The texts of a source.

    Args:
        source: a text file, JSONL or parquet (local or in a wheel), or a hub data set.
        pin_: what dass.lock.json says of it; None asks no questions.
        root: the folder that relative paths start from.

    Raises:
        InputError: it is missing, damaged, empty, in another form, or not what `pin_` or its sha256 says.
    """
    where = locate(source, root)
    if isinstance(where, HubId):
        documents = _rows(source, where, (pin_ or {}).get("revision") or where.revision)
    elif where.is_dir():
        raise InputError(f"{where} is a folder: expected a text, JSONL or parquet file.")
    else:
        content = _read(where)
        name = (source.uri if isinstance(source.uri, str) else source.uri[-1]).rsplit("/", 1)[-1]
        documents = Documents(_parse(content, name, source.column), hashlib.sha256(content).hexdigest())
    check_digest(source, documents.sha256, pin_)
    if not any(text.strip() for text in documents.texts):
        raise InputError(f"{uri_of(source)} holds no text: expected at least one document that is not blank.")
    return documents


def _parse(content: bytes, name: str, column: str) -> list[str]:
    """The documents in a file, by its name's ending: JSONL, parquet, else one long UTF-8 text."""
    if name.endswith(".parquet"):
        return _parquet_rows(content, name, column)
    if name.endswith(".gz"):
        try:
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        except (OSError, EOFError) as error:
            raise InputError(f"{name} is damaged or cut off ({error}). Fetch it again.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): expected text, JSONL or parquet.") from None
    return _jsonl_rows(text, name, column) if name.endswith((".jsonl", ".ndjson", ".json")) else [text]


def _jsonl_rows(text: str, name: str, column: str) -> list[str]:
    rows = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{name} line {number} is not JSON: expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{name} line {number} is no object: expected one with the column {column!r}.")
        rows.append(_text_of(row, column, f"{name} line {number}"))
    return rows


def _parquet_rows(content: bytes, name: str, column: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        names = file.schema_arrow.names
        values = file.read(columns=[column])[column].to_pylist() if column in names else None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{name} is not a whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
        ) from error
    if values is None:
        raise InputError(f"{name} has no column {column!r}, only {', '.join(names)}. Set column in params.yaml.")
    return [_text_of({column: value}, column, f"{name} row {number}") for number, value in enumerate(values, start=1)]


def _rows(source: Source, hub: HubId, revision: str | None) -> Documents:
    rows = fetch_rows(hub, source, revision)
    if source.column not in rows.column_names:
        raise InputError(
            f"{uri_of(source)} has no column {source.column!r}, only {', '.join(rows.column_names)}. "
            "Set column in params.yaml."
        )
    texts = [_text_of({source.column: value}, source.column, hub.repo) for value in rows[source.column]]
    return Documents(texts, _digest_of_texts(texts))


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise InputError(f"{where} has no column {column!r}, only {', '.join(row)}. Set column in params.yaml.")
    if not isinstance(row[column], str):
        raise InputError(
            f"{where}: {column!r} is {type(row[column]).__name__}, expected text. Set column in params.yaml."
        )
    return str(row[column])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _digest_of_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
