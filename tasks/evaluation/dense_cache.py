"""What dense models answered, kept for this user: ten versions of one base cost one dense evaluation, in any workspace.

A file a task, named by the digest of everything that an answer depends on. What grows has a bound: the files that were
not used for longest go first.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from dass.files import complete_file
from tasks.workspace.cache_folder import cache_folder

LARGEST = 1 << 30
"""Bytes that all files may have together."""


def kept_answers(key: str) -> Path | None:
    """The log of a finished dense evaluation; None: none is kept."""
    path = _path(key)
    if not path.is_file():
        return None
    with suppress(OSError):
        os.utime(path)
    return path


def keep_answers(key: str, log: Path) -> None:
    """Keep a finished log. Where nothing can be kept, the next workspace asks again."""
    with suppress(OSError):
        with complete_file(_path(key)) as temporary:
            shutil.copyfile(log, temporary)
        _bound(_path(key).parent)


def _path(key: str) -> Path:
    return cache_folder() / "answers" / f"{key}.jsonl"


def _bound(folder: Path) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    held = 0
    for path in files:
        held += path.stat().st_size
        if held > LARGEST:
            path.unlink(missing_ok=True)
