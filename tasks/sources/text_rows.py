"""Rows that hold a text in one column: JSONL, a JSON array, CSV, TSV and parquet."""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from dass.errors import InputError
from tasks.sources.unpack import bound_of, too_large

_SET = "Set column in params.yaml."


def lines(text: str) -> Iterator[str]:
    """As a file gives them. io.StringIO would copy the text, at 4 bytes a character."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        yield text[begin:end]
        begin = end


def jsonl_rows(text: str, name: str, column: str) -> Iterator[str]:
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=lambda pairs: _object(pairs, column))
        except _RepeatedKeyError:
            raise InputError(f"{where} holds {column!r} twice: expected one text a row.") from None
        except ValueError:
            raise InputError(f"{where} is not JSON: expected one object a line.") from None
        yield _of_object(row, column, where)


def array_rows(text: str, name: str, column: str) -> Iterator[str]:
    try:
        rows = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, column))
    except _RepeatedKeyError:
        raise InputError(f"{name} holds a row with {column!r} twice: expected one text a row.") from None
    except ValueError as error:
        raise InputError(f"{name} is not JSON ({first_line(error)}): expected one array of objects.") from None
    for number, row in enumerate(rows, start=1):
        yield _of_object(row, column, f"{name} entry {number}")


class _RepeatedKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]], column: str) -> dict[str, Any]:
    if sum(key == column for key, _ in pairs) > 1:
        raise _RepeatedKeyError
    return dict(pairs)


def _of_object(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object: expected one with the column {column!r}.")
    if column not in row:
        raise no_column(where, column, row)
    return text_of(row[column], column, where)


def csv_rows(text: str, name: str, column: str, delimiter: str) -> Iterator[str]:
    before = csv.field_size_limit(len(text) + 1)  # of the whole process: put back at the end
    try:
        reader = csv.reader(lines(text), delimiter=delimiter, strict=True)
        names = next(reader, [])
        at = _index(names, column, name)
        for row in reader:
            if not row:
                continue
            where = f"{name} line {reader.line_num}"
            if len(row) != len(names):
                raise InputError(f"{where} has {len(row)} fields, and its first line {len(names)}. Mend that row.")
            yield text_of(row[at], column, where)
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num} is damaged ({error}). Mend its quotes.") from None
    finally:
        csv.field_size_limit(before)


def parquet_rows(content: bytes, name: str, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    with whole(name, "parquet"):
        metadata = pyarrow.parquet.read_metadata(pyarrow.BufferReader(content))
        _index(metadata.schema.to_arrow_schema().names, column, name)
        places = product(range(metadata.num_row_groups), range(metadata.num_columns))
        parts = [metadata.row_group(group).column(place) for group, place in places]
        of_column = [part for part in parts if part.path_in_schema.split(".")[0] == column]
        if sum(part.total_uncompressed_size for part in of_column) > bound_of(len(content)):
            raise too_large(name, len(content))
        # As a dictionary, a text that many rows repeat stays one text until it is counted.
        flat = [column] if all(part.path_in_schema == column for part in of_column) else None
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), read_dictionary=flat)
        number = 0
        for batch in file.iter_batches(1024, columns=[column]):
            for value in batch.column(0):
                number += 1
                yield text_of(value.as_py(), column, f"{name} row {number}")


@contextmanager
def whole(name: str, kind: str) -> Iterator[None]:
    """What pyarrow raises about somebody's file, in one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise InputError(f"{name} is not a whole {kind} file ({first_line(error)}). Fetch it again.") from error


def _index(names: list[str], column: str, name: str) -> int:
    if names.count(column) > 1:
        raise InputError(f"{name} has {names.count(column)} columns {column!r}: expected one. Rename the others.")
    if column not in names:
        raise no_column(name, column, names)
    return names.index(column)


def no_column(where: str, column: str, names: Iterable[str]) -> InputError:
    told = ", ".join(map(str, names))
    return InputError(f"{where} has no column {column!r}, only {told[:200]}{'...' if told[200:] else ''}. {_SET}")


def text_of(value: Any, column: str, where: str) -> str:
    """A row's text.

    Raises:
        InputError: it is something else, or no Unicode text.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise InputError(f"{where}: {column!r} is {kind}, expected text. {_SET}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {column!r} holds half a character (the lone surrogate \\u{ord(value[error.start]):04x}): "
            "no text. Mend that row."
        ) from None
    return value


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
