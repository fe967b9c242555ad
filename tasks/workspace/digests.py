"""Digests of large files, remembered on this machine for as long as a file stays as it is.

A file is known by device, inode, size, and by when its bytes and its inode last changed. A program can set the first of
these times (`touch -d`), and not the second; renaming, linking and `chmod` change that one, too, so what we do of this
ourselves stands in `unchanged_by`. A time that is so fresh that another change could bear it is waited out.

Whoever can write here could have us believe in other bytes. So this saves reading while something is made; what proves
(`dass verify`, `--replay`, a signature's check, loading) reads every byte, and asks nobody.
"""

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.digests import Digests, copy_file, digests_of
from tasks.workspace.cache_folder import cache_folder

LEAST_BYTES = 1 << 18
"""Smaller files are read sooner than looked up."""
_MOST_FILES = 4096
_TICK_SECONDS = 0.02  # two changes further apart than this bear different times
_COARSE_SECONDS = 2.0  # the same where times are whole seconds

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class _State:
    """What changes when a file does. Times are nanoseconds since 1970."""

    device: int
    inode: int
    size: int
    bytes_changed: int
    inode_changed: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def same_bytes(self) -> tuple[int, ...]:
        """What renaming, linking and `chmod` leave as it was."""
        return self.device, self.inode, self.size, self.bytes_changed

    @property
    def file(self) -> Path:
        """Where its digests are kept; one entry a file, whatever becomes of it."""
        return cache_folder() / "digests" / f"{platform.node()}-{self.device:x}-{self.inode:x}.json"


def known_digests(path: Path, md5: bool = False) -> Digests:
    """A file's digests: remembered ones, else it is read, once for both.

    Args:
        path: the file; a link is followed.
        md5: whether that is asked for, too.
    """
    found = _recall(_State.of(path))
    return read_digests(path, md5) if found is None or (md5 and found.md5 is None) else found


def read_digests(path: Path, md5: bool = False) -> Digests:
    """A file's digests, read from its bytes whatever is remembered, and remembered then."""
    before = _settled(path)
    found = digests_of(path, md5)
    if before is not None and found.size == before.size and _State.of(path) == before:
        _keep(before, found)
    return found


def remember(path: Path, digests: Digests) -> None:
    """Note the digests of a file that this process has just written, and that nobody else can have changed yet."""
    state = _settled(path)
    if state is not None and state.size == digests.size:
        _keep(state, digests)


def copy_remembered(origin: Path, target: Path) -> Digests:
    """Copy a file to one that is not there yet, and remember the copy's digests, which come from the copying."""
    found = copy_file(origin, target, md5=True)
    remember(target, found)
    return found


@contextmanager
def unchanged_by(paths: Iterable[Path]) -> Iterator[None]:
    """Around what changes files' names, links or rights, and none of their bytes: what is remembered of them stays."""
    known = [(path, state, found) for path in paths if (found := _recall(state := _State.of(path))) is not None]
    yield
    for path, before, found in known:
        with suppress(FileNotFoundError):
            now = _settled(path)
            if now is not None and now.same_bytes == before.same_bytes:
                _keep(now, found)


def _recall(state: _State) -> Digests | None:
    if state.size < LEAST_BYTES:
        return None
    try:
        if state.file.stat().st_uid != os.geteuid():
            return None
        kept: dict[str, Any] = json.loads(state.file.read_text(encoding="ascii"))
        return Digests(**kept["digests"]) if kept["state"] == asdict(state) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _settled(path: Path) -> _State | None:
    """A file's state, once no other change can bear the same times; None where that takes long, or is not worth it."""
    state = _State.of(path)
    if state.size < LEAST_BYTES:
        return None
    times = state.bytes_changed, state.inode_changed
    is_coarse = not any(each % 1_000_000_000 for each in times)
    left = (_COARSE_SECONDS if is_coarse else _TICK_SECONDS) - (time.time() - max(times) / 1e9)
    if left > _TICK_SECONDS:  # or times are another machine's, whose clock is ahead
        return None
    if left > 0:
        time.sleep(left)
    return state if _State.of(path) == state else None


def _keep(state: _State, digests: Digests) -> None:
    folder = state.file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=folder, delete=False) as file:
            json.dump({"state": asdict(state), "digests": asdict(digests)}, file)
        os.replace(file.name, state.file)
        _forget_oldest(folder)
    except OSError:
        logger.debug("Nothing kept in %s: files are hashed again next time.", folder)


def _forget_oldest(folder: Path) -> None:
    with os.scandir(folder) as found:
        entries = list(found)
    if len(entries) > _MOST_FILES:
        with suppress(FileNotFoundError):  # another process does the same
            for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)[: _MOST_FILES // 4]:
                os.unlink(entry.path)
