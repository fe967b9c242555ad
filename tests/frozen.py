"""A process that has taken a lock and is stopped, as SIGSTOP, a debugger or a frozen container leaves one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SQLITE = "import sqlite3; held = sqlite3.connect(path, isolation_level=None); held.execute('begin {kind}')"
_TAKES = {
    "file": "import fcntl; held = open(path, 'a'); fcntl.flock(held, fcntl.LOCK_EX)",
    "writing": _SQLITE.format(kind="immediate"),
    "alone": _SQLITE.format(kind="exclusive"),
}


@contextmanager
def frozen_holder(path: Path, what: str) -> Iterator[int]:
    """The number of a process that holds a file ("file": by flock), or a database for "writing" or "alone"."""
    script = f"import sys, time; path = sys.argv[1]; {_TAKES[what]}; print('taken', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        freeze(process.pid)
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def freeze(pid: int) -> None:
    """Stop a process, and wait until all of it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.005)
