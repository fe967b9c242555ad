"""Texts out of the bytes of a file: its content tells what it is, and the ending of its name where content cannot.

Read are UTF-8 text, JSONL, a JSON array, CSV, TSV and parquet, each also compressed with gzip, bzip2, xz or zstd.
Everything else is refused. What a small file unpacks to has a bound.
"""

import json
import logging
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from dass.errors import InputError
from tasks.sources.text_rows import array_rows, csv_rows, jsonl_rows, lines, parquet_rows
from tasks.sources.unpack import bounded, unpack

_KNOWN = "expected UTF-8 text, JSONL, a JSON array, CSV, TSV or parquet"
_PARQUET = b"PAR1"  # at both ends
_ARRAY = re.compile(r"\s*\[\s*[{\]]")

# How files start that hold no text, though some of them could be decoded.
_OTHERS: dict[bytes, str] = {
    b"PK\x03\x04": "a zip file: unpack it first",
    b"%PDF-": "a PDF: extract its text first",
    b"{\\rtf": "a rich text (RTF) document: save it as plain text",
    b"\xff\xfe\x00\x00": "UTF-32 text: save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text: save it as UTF-8",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"version https://git-lfs.github.com/spec/": "the pointer that git lfs left in its place: run git lfs pull",
    b"ARROW1\x00\x00": "an Arrow (Feather) file: save it as parquet",
    b"GGUF\x03\x00": "a GGUF model",
    b"SQLite format 3\x00": "an SQLite database",
    b"7z\xbc\xaf\x27\x1c": "a 7z file: unpack it first",
    b"Rar!\x1a\x07": "a rar file: unpack it first",
    b"\x04\x22\x4d\x18": "an lz4 file: unpack it first",
}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)

logger = logging.getLogger("dass")


def parse(content: bytes, name: str, column: str) -> list[str]:
    """The documents in a file: a row each, or the whole of a plain text as one.

    Args:
        content: the file.
        name: its name, for its ending and for messages.
        column: where rows hold their text. A plain text has none: then only "text", the default, will do.

    Raises:
        InputError: it is damaged, of another form, larger than its bound, or a row holds no text in that column.
    """
    plain, plain_name = unpack(content, name)
    ending = plain_name.rpartition(".")[2].lower() if "." in plain_name else ""
    try:
        return list(bounded(_documents(plain, name, ending, column), name, len(content)))
    except RecursionError:
        raise InputError(f"{name} holds JSON that is nested too deeply: expected rows with text.") from None


def _documents(content: bytes, name: str, ending: str, column: str) -> Iterator[str]:
    """The documents of what is not compressed (any more), by its content where its ending lies."""
    if ending == "parquet" or (content.startswith(_PARQUET) and content.endswith(_PARQUET)):
        return parquet_rows(content, name, column)
    for magic, what in _OTHERS.items():
        if content.startswith(magic):
            raise InputError(f"{name} is {what}. {_KNOWN.capitalize()}.")
    if content[257:262] == b"ustar":
        raise InputError(f"{name} is a tar file: unpack it first. {_KNOWN.capitalize()}.")
    if _HTML.match(content) or ending in ("html", "htm"):
        raise InputError(f"{name} is an HTML page: extract its text first. {_KNOWN.capitalize()}.")
    text = _decoded(content, name)
    if ending in ("csv", "tsv"):
        return csv_rows(text, name, column, "\t" if ending == "tsv" else ",")
    if ending in ("jsonl", "ndjson", "json"):
        return (array_rows if _ARRAY.match(text) else jsonl_rows)(text, name, column)
    if held := _json_inside(text):
        logger.info("%s holds %s: each object is read as a document.", name, held)
        return (array_rows if held == "a JSON array" else jsonl_rows)(text, name, column)
    if column != "text":
        raise InputError(f"{name} is plain text, which has no column {column!r}. Take column out of params.yaml.")
    return iter([text])


def _decoded(content: bytes, name: str) -> str:
    """UTF-8 text with the line ends that Linux writes."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): {_KNOWN}.") from None
    if "\0" in text:
        raise InputError(f"{name} holds a NUL byte (character {text.index(chr(0))}), so it is no UTF-8 text: {_KNOWN}.")
    return text.replace("\r\n", "\n") if "\r\n" in text else text


def _json_inside(text: str) -> str | None:
    """Whether a file without an ending that says so holds JSON objects: told by its first three lines, or all of it."""
    head = list(islice((line.strip() for line in lines(text) if line.strip()), 3))
    if head and all(line.startswith("{") and isinstance(_loaded(line), dict) for line in head):
        return "JSONL"
    if _ARRAY.match(text) and isinstance(_loaded(text), list):
        return "a JSON array"
    return None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
