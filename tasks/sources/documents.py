"""Texts out of a source: files of the formats that `text_formats` names, and data sets on the hub."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.sources.hub import HubId, fetch_rows
from tasks.sources.locate import check_digest, locate, uri_of
from tasks.sources.text_formats import parse
from tasks.sources.text_rows import no_column, text_of
from tasks.sources.unpack import LARGEST, bounded
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
        source: a file (local or in a wheel) of text, JSONL, CSV, TSV or parquet, or a hub data set.
        pin_: what dass.lock.json says of it; None asks no questions.
        root: the folder that relative paths start from.

    Raises:
        InputError: it is missing, damaged, empty, in another form, or not what `pin_` or its sha256 says.
    """
    where = locate(source, root)
    if isinstance(where, HubId):
        documents = _rows(source, where, (pin_ or {}).get("revision") or where.revision)
    elif where.is_dir():
        raise InputError(f"{where} is a folder: expected a file of text, JSONL, CSV or parquet. Name one of its files.")
    else:
        _refuse_hub_fields(source)
        content = _read(where)
        name = (source.uri if isinstance(source.uri, str) else source.uri[-1]).rsplit("/", 1)[-1]
        documents = Documents(parse(content, name, source.column), hashlib.sha256(content).hexdigest())
    check_digest(source, documents.sha256, pin_)
    if not any(text.strip() for text in documents.texts):
        raise InputError(f"{uri_of(source)} holds no text: expected at least one document that is not blank.")
    return documents


def _refuse_hub_fields(source: Source) -> None:
    given = [name for name in ("split", "subset", "data_files") if getattr(source, name) is not None]
    if given:
        raise InputError(
            f"{uri_of(source)} is a file, and {given[0]} is for hub data sets. Take it out of params.yaml."
        )


def _rows(source: Source, hub: HubId, revision: str | None) -> Documents:
    rows = fetch_rows(hub, source, revision)
    if source.column not in rows.column_names:
        raise no_column(uri_of(source), source.column, rows.column_names)
    values = enumerate(rows[source.column], start=1)
    checked = (text_of(value, source.column, f"{hub.repo} row {number}") for number, value in values)
    texts = list(bounded(checked, uri_of(source), LARGEST))
    return Documents(texts, _digest_of_texts(texts))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(
                f"{path} has {size} bytes: at most {LARGEST} bytes of text are read. Cut a part out of it."
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _digest_of_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
