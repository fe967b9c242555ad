"""Who holds a locked file on this machine, as Linux tells it: a message then names a process that can be looked at.

A process that is stopped (SIGSTOP, a debugger, a frozen container) holds its locks until it goes on or ends, and nobody
can take them from it. So it is told apart from one that works. On another machine's locks, and where the kernel keeps
no list, nothing is known, and nothing is said.
"""

import os
import sqlite3
from pathlib import Path

import psutil

OURSELVES, OTHERS = "this process itself", "another process"
_LOCKS = Path("/proc/locks")
_BESIDE = ("", "-wal", "-shm", "-journal")  # a database's own locks lie on one of its files
_LONGEST = 3  # so many are named


def holders(path: Path) -> list[int]:
    """The processes that have a file locked, or as SQLite's database one of the files beside it; oldest number first.

    Only looks, and opens nothing: a process that closes a file gives up its own locks of it.
    """
    wanted = set()
    for ending in _BESIDE:
        try:
            found = os.stat(f"{path}{ending}")
        except OSError:
            continue
        wanted.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return []
    # 1: POSIX  ADVISORY  WRITE 4711 fe:00:2148571 1073741824 1073742335; "->" marks one that waits
    fields = [line.split() for line in lines if "->" not in line]
    return sorted({int(each[4]) for each in fields if len(each) > 5 and each[5] in wanted and int(each[4]) > 0})


def told_holders(path: Path) -> str:
    """They in words, each with what to do about it; "another process" where none is known."""
    known = [told for pid in holders(path) if (told := _told(pid))]
    return ", ".join(known[:_LONGEST]) or OTHERS


def is_locked(error: BaseException) -> bool:
    """Whether SQLite gave up waiting for a lock; SQLAlchemy's errors hold SQLite's."""
    original = getattr(error, "orig", None) or error
    return isinstance(original, sqlite3.OperationalError) and "locked" in str(original)


def told_lock(database: Path | None, seconds: float) -> str:
    """Of a database that stayed locked: who has it, and what to do. None: a database that is no file."""
    told = told_holders(database) if database else OTHERS
    return f"the database was locked for {seconds:g} s by {told}. Try again when that has ended"


def _told(pid: int) -> str | None:
    """None: it has ended meanwhile."""
    if pid == os.getpid():
        return OURSELVES
    try:
        process = psutil.Process(pid)
        name, is_stopped = process.name(), process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return f"process {pid}"
    if not is_stopped:
        return f"process {pid} ({name})"
    return f"process {pid} ({name}), which is stopped: `kill -CONT {pid}` lets it go on, `kill -9 {pid}` ends it"
