"""Writing so that a file or folder is complete or absent, and reading with digests."""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dass.errors import InputError

# ".NAME.PROCESS.partial", with a random part ".NAME.RANDOM.PROCESS.partial"; and what SQLite writes beside a file.
_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.\w{8})?\.(?P<process>\d+)\.(?P<kind>partial|retired)(-journal|-wal|-shm)?")

_LARGEST_JSON = 1 << 28  # the index of a checkpoint with a million tensors has less


_asked: list[Callable[[Path], object]] = []


@contextmanager
def asking_before_writes(may: Callable[[Path], object]) -> Iterator[None]:
    """While entered, each path that `complete_file` and `complete_folder` are about to replace is shown to `may`; what
    that raises leaves it as it was."""
    _asked.append(may)
    try:
        yield
    finally:
        _asked.remove(may)


def fsync_path(path: Path) -> None:
    """Make `path` (a file or a folder's entries) survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it there, on failure remove it.

    Raises:
        OSError: the disk is full or fails; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            yield temporary
            fsync_path(temporary)
        _ask(path)
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it becomes `path`, replacing what was there.

    The old folder is never written into: its files may be hard links into DVC's cache. Whether it may be replaced, the
    caller has asked. A link is followed: the folder is made where it leads.

    Raises:
        OSError: the disk is full or fails; names `path`.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            for item in [*temporary.rglob("*"), temporary]:
                fsync_path(item)
        _ask(path)
        if path.exists():
            retired = path.with_name(f".{path.name}.{os.getpid()}.retired")
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ask(path: Path) -> None:
    for may in _asked:
        may(path)


def remove_whole(path: Path) -> None:
    """Remove a file or folder so that it is whole or gone: a kill leaves nothing under its name that looks complete."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        os.replace(path, aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """What `clear_leftovers` would undo, in its order."""
    found = []
    for path in sorted(folder.glob(f".{glob.escape(name)}*"), reverse=True):  # .retired comes before .partial
        named = _TEMPORARY.fullmatch(path.name)
        if named is not None and (not name or named["name"] == name) and not is_alive(int(named["process"])):
            found.append(path)
    return found


def clear_leftovers(folder: Path, name: str = "") -> None:
    """Undo in `folder` what processes that are gone were writing when they were killed.

    They are known by the number at the end of a temporary name. What was half written is removed; what had been moved
    aside, to be replaced a moment later, is put back.

    Args:
        folder: where to look; not in its subfolders.
        name: only what belongs to this file or folder; "" is everything.
    """
    for leftover in leftovers(folder, name):
        named = _TEMPORARY.fullmatch(leftover.name)
        assert named is not None
        target = folder / named["name"]
        if named["kind"] == "retired" and not target.exists():
            os.replace(leftover, target)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def scratch_folder(where: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in `where` that is removed at the end; after a kill, by the next one of that name."""
    where.mkdir(parents=True, exist_ok=True)
    clear_leftovers(where, name)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=f".{os.getpid()}.partial", dir=where) as folder:
        yield Path(folder)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is running, ours or not."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts `path` into system errors that name no file, and takes those apart that safetensors tells as text."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def files_in(folder: Path) -> dict[str, Path]:
    """Every file and link under a folder by its name relative to it, "sub/name" in subfolders."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in found}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it is no file, larger than 256 MiB, or not JSON.
        FileNotFoundError: there is none.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise InputError(f"{path} is no file: expected JSON. Move it away.")
    if (size := path.stat().st_size) > _LARGEST_JSON:
        raise InputError(f"{path} has {size} bytes: expected JSON of at most {_LARGEST_JSON}. Restore it.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is damaged: it is not JSON ({reason}). Restore it, or make it again.") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, complete or not at all."""
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
