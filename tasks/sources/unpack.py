"""What a text file unpacks to, and the bound it has: text that was compressed, and rows that repeat a text."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from dass.errors import InputError

LARGEST = 1 << 30
"""Bytes of text that a source may hold."""
_RATIO, _ALWAYS = 100, 1 << 26  # text grows about 4 to 20 times
_ROW = 64  # bytes that a row takes beside its text

_COMPRESSED = {
    "gz": re.compile(rb"\x1f\x8b"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd"),
}


def bound_of(stored: int) -> int:
    """How many bytes of text a file of `stored` bytes may hold: 100 times that, at least 64 MiB, at most 1 GiB."""
    return min(LARGEST, max(_ALWAYS, _RATIO * stored))


def unpack(content: bytes, name: str) -> tuple[bytes, str]:
    """A file's content without its compression, told by its first bytes, and its name without that ending.

    Raises:
        InputError: it is damaged, compressed twice, or grows beyond its bound.
    """
    inner, dot, last = name.rpartition(".")
    compression, named = _compression(content), bool(dot) and last.lower() in _COMPRESSED
    if compression is None:
        if named:
            raise InputError(f"{name} is damaged or cut off (no {last} file). Fetch it again.")
        return content, name
    unpacked = _unpacked(content, compression, name)
    if _compression(unpacked) is not None:
        raise InputError(f"{name} is compressed twice. Unpack it once.")
    return unpacked, inner if named else name


def bounded(texts: Iterable[str], name: str, stored: int) -> Iterator[str]:
    """The same texts, as long as a file of `stored` bytes may hold them.

    Raises:
        InputError: they are more.
    """
    held, bound = 0, bound_of(stored)
    for text in texts:
        held += len(text) + _ROW
        if held > bound:
            raise too_large(name, stored)
        yield text


def too_large(name: str, stored: int) -> InputError:
    return InputError(
        f"{name} ({stored} bytes) unpacks to more than {bound_of(stored)} bytes, the most that a file of its size may "
        f"hold ({_RATIO} times that, at least {_ALWAYS} and at most {LARGEST} bytes). Cut a part out of it."
    )


def _compression(content: bytes) -> str | None:
    return next((kind for kind, magic in _COMPRESSED.items() if magic.match(content)), None)


def _unpacked(content: bytes, compression: str, name: str) -> bytes:
    import pyarrow

    bound = bound_of(len(content))
    try:
        with _opened(content, compression) as file:
            unpacked = file.read(bound + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} is damaged or cut off ({reason}). Fetch it again.") from error
    if len(unpacked) > bound:
        raise too_large(name, len(content))
    return unpacked


def _opened(content: bytes, compression: str) -> BinaryIO:
    import pyarrow

    if compression == "gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=io.BytesIO(content)))
    if compression == "bz2":
        return cast(BinaryIO, bz2.BZ2File(io.BytesIO(content)))
    if compression == "xz":
        return cast(BinaryIO, lzma.LZMAFile(io.BytesIO(content)))
    return pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd")
