"""An audit bundle as a file: a plain zip of small files, laid out in one way only, so that equal histories are equal
bytes.

bundle.json                      what is in it
ledger/000000.json, ...          the entries, each a DSSE envelope, byte for byte as they were written
keys/NAME-FINGERPRINT.pem        the public keys that the ledger lists
versions/1/README.md, dass/...   of each version what tells about it: neither weights nor masks

Nothing is compressed: what is in it takes as much room as the archive has, and standard tools read it.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dass.errors import InputError
from dass.files import naming
from tasks.registry.keyring import Key
from tasks.registry.version_folder import BOM, CARD, EVALUATION, MANIFEST, RECOVERY, SETTINGS, SIGNATURE, TASKS, VERSION

FORMAT = "dass-audit-1"
BUNDLE = "bundle.json"
FILES = (BOM, CARD, EVALUATION, MANIFEST, RECOVERY, SIGNATURE, SETTINGS, TASKS, VERSION)
"""What of a version is in a bundle."""
LARGEST = 16 << 20
"""Bytes of one file in a bundle: a signature's bound."""

_LARGEST_ARCHIVE = (1 << 31) - 1  # and so many files, that a zip says with its oldest header
_MOST = 60_000
_LONGEST_NAME = 200
_PART = "[A-Za-z0-9@_][A-Za-z0-9@._-]*"
_NAME = re.compile(f"{_PART}(/{_PART})*")
_TIME = (1980, 1, 1, 0, 0, 0)
_REGULAR = 0o100644 << 16
_LOCAL, _CENTRAL = 30, 46  # bytes of a file's two headers, beside its name
_END = struct.Struct("<4s4H2LH")  # what a zip without a comment ends with


class DamagedFile(Exception):
    """A file of a bundle cannot be read. One line."""


def entry_name(n: int) -> str:
    """Where an entry of the ledger is."""
    return f"ledger/{n:06d}.json"


def key_name(key: Key) -> str:
    """Where a public key is."""
    plain = re.sub("[^A-Za-z0-9@._-]", "_", key.name)[:60]
    return f"keys/{'' if re.match('[A-Za-z0-9@_]', plain) else '_'}{plain}-{key.fingerprint[:16]}.pem"


def version_name(version: str, name: str) -> str:
    """Where a version's file is."""
    return f"versions/{version}/{name}"


def write_archive(file: Path, contents: Mapping[str, bytes]) -> None:
    """Write a bundle's files: equal contents give equal bytes.

    Raises:
        InputError: there is more than a bundle holds.
    """
    for name, content in contents.items():
        if len(content) > LARGEST:
            raise InputError(f"{name} has {len(content)} bytes: an audit bundle holds files of at most {LARGEST}.")
    if len(contents) > _MOST or _size(contents) > _LARGEST_ARCHIVE:
        raise InputError(
            f"The history has {len(contents)} files of {_size(contents)} bytes: an audit bundle holds at most {_MOST} "
            f"of {_LARGEST_ARCHIVE}."
        )
    with naming(file), zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, wherever it is written
            entry.external_attr = _REGULAR
            archive.writestr(entry, contents[name])


@dataclass(frozen=True)
class Archive:
    """A bundle that is laid out as it may be. Its files are read when they are asked for.

    Attributes:
        names: of its files.
    """

    names: frozenset[str]
    _zip: zipfile.ZipFile

    def read(self, name: str) -> bytes:
        """A file's bytes, at most LARGEST.

        Raises:
            DamagedFile: they are damaged, or there is no such file.
        """
        if name not in self.names:
            raise DamagedFile(f"{name} is missing from the bundle.")
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError):
            raise DamagedFile(f"{name} is damaged: it is not what was put into the bundle.") from None

    def text(self, name: str) -> str:
        """As `read`, of a text."""
        try:
            return self.read(name).decode()
        except UnicodeDecodeError:
            raise DamagedFile(f"{name} is damaged: it is no text.") from None


@contextmanager
def open_archive(file: Path) -> Generator[Archive]:
    """Open a bundle, after a look at the sizes and names that its directory declares.

    Raises:
        InputError: it is no audit bundle. The message names what in it is not as in one.
    """
    if not file.exists():
        raise InputError(f"There is no {file}: expected an audit bundle, as dass export-audit writes.")
    if not file.is_file():
        raise InputError(f"{file} is no file: expected an audit bundle, as dass export-audit writes.")
    _check_end(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise _refused(file, f"is damaged ({error})") from None
    with archive:
        sizes: dict[str, int] = {}
        for entry in archive.infolist():
            if told := _wrong(entry, sizes):
                raise _refused(file, told)
            sizes[entry.filename] = entry.file_size
        if sum(sizes.values()) + _overhead(sizes) != file.stat().st_size:
            raise _refused(file, "holds more or less than the files that its directory lists")
        if BUNDLE not in sizes:
            raise _refused(file, f"holds no {BUNDLE}")
        yield Archive(frozenset(sizes), archive)


def _check_end(file: Path) -> None:
    """Look at the size of the directory before it is read into memory."""
    size = file.stat().st_size
    if size > _LARGEST_ARCHIVE:
        raise _refused(file, f"has {size} bytes, of at most {_LARGEST_ARCHIVE}")
    with file.open("rb") as opened:
        opened.seek(max(0, size - _END.size))
        end = opened.read(_END.size)
    if len(end) != _END.size or not end.startswith(b"PK\x05\x06"):
        raise _refused(file, "does not end as a zip without a comment does")
    _, _, _, _, count, directory, _, _ = _END.unpack(end)
    if count > _MOST or directory > count * (_CENTRAL + _LONGEST_NAME):
        raise _refused(file, f"lists {count} files in {directory} bytes, of at most {_MOST}")


def _wrong(entry: zipfile.ZipInfo, before: Mapping[str, int]) -> str | None:
    """What of a file in the directory is not as `write_archive` writes it; None: all is."""
    name = entry.orig_filename
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        return f"holds the name {name[:_LONGEST_NAME]!a}, which no bundle has"
    if name in before:
        return f"holds {name} twice"
    if entry.external_attr != _REGULAR:
        return f"holds {name}, which is no plain file (a link, a folder or a program)"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits:
        return f"holds {name} compressed or encrypted: a bundle's files are stored as they are"
    if entry.file_size > LARGEST:
        return f"holds {name} with {entry.file_size} bytes, of at most {LARGEST}"
    if entry.extra or entry.comment:
        return f"holds more about {name} than its name"
    return None


def _refused(file: Path, what: str) -> InputError:
    return InputError(f"{file} {what}: expected an audit bundle, as dass export-audit writes. Get it anew.")


def _size(contents: Mapping[str, bytes]) -> int:
    return sum(map(len, contents.values())) + _overhead(contents)


def _overhead(names: Mapping[str, object]) -> int:
    """Bytes of an archive beside its files' contents."""
    return _END.size + sum(_LOCAL + _CENTRAL + 2 * len(name) for name in names)
