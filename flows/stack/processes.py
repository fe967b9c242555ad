"""Processes that outlive the command that starts them, and are known again by number and start, never by name."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dass.errors import InfrastructureError
from tasks.workspace.redaction import redacted

MARK = "DASS_STACK"
"""In the environment of everything a stack starts, and of what that starts: whose it is."""

_LAST_WORDS = 8192  # bytes
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Started:
    """A process of ours.

    Attributes:
        pid: its number.
        start: which start of the machine, and when behind it: another process of that number has another.
    """

    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> "Started | None":
        """None: there is no such process, or it has ended and waits to be collected."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            stat = Path(f"/proc/{pid}/stat")
            if not stat.exists():  # no Linux
                return cls(pid, f"{process.create_time():.2f}")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(pid, f"{boot} {stat.read_text().rpartition(')')[2].split()[19]}")
        except (psutil.NoSuchProcess, OSError):
            return None

    @property
    def is_alive(self) -> bool:
        return Started.of(self.pid) == self


def begin(
    command: Sequence[str | Path],
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    mark: str,
    *,
    works: Callable[[], bool],
    what: str,
    seconds: float,
    **how: Any,
) -> Started:
    """Start a service in a session of its own that writes to a log, and return when it works.

    Args:
        command, folder, how: as for subprocess.
        log: appended to.
        environment: all that it gets, but for the mark.
        mark: what its processes are known by.
        works: asked until it says so.
        what: the service, for messages.
        seconds: it may take.

    Raises:
        InfrastructureError: it ended, or took too long; says what it said last, and where its log is. Nothing of it is
            left.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **how,
        )
    started = Started.of(process.pid) or Started(process.pid, "ended")
    deadline = time.monotonic() + seconds
    try:
        while not works():
            if not started.is_alive:
                raise InfrastructureError(f"{what} did not start: {last_words(log)} (log: {log}).")
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{what} did not answer in {seconds:.0f} s: {last_words(log)} (log: {log}).")
            time.sleep(_POLL_SECONDS)
    except BaseException:
        stop(started, mark, _END_SECONDS)
        raise
    return started


def last_words(log: Path) -> str:
    """The last line of a log that says something, without secrets."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LAST_WORDS, 0))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return redacted(lines[-1])[:300] if lines else "it said nothing"


def stop(started: Started, mark: str, seconds: float, ask: signal.Signals = signal.SIGTERM) -> bool:
    """End a process of ours and everything it started, also what outlived it.

    Args:
        started: the process.
        mark: what their environments hold as MARK.
        seconds: what they get to end by themselves.
        ask: how the process is asked; what it started is left to it for so long.

    Returns:
        Whether anything was running.
    """
    mine = _family(started, mark)
    if started.is_alive:
        with suppress(ProcessLookupError):
            os.kill(started.pid, ask)
        psutil.wait_procs([each for each in mine if each.pid == started.pid], timeout=seconds)
    left = [each for each in {*mine, *_family(started, mark)} if each.is_running()]
    for end, patience in ((psutil.Process.terminate, 5.0), (psutil.Process.kill, 5.0)):
        for each in left:
            with suppress(psutil.NoSuchProcess):
                end(each)
        left = psutil.wait_procs(left, timeout=patience)[1]
    return bool(mine)


def _family(started: Started, mark: str) -> list[psutil.Process]:
    """The process if it is still ours, what it has started, and whatever bears the mark."""
    found: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        if started.is_alive:
            leader = psutil.Process(started.pid)
            found |= {leader, *leader.children(recursive=True)}
    for each in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if each.environ().get(MARK) == mark:
                found.add(each)
    return [each for each in found if each.pid != os.getpid()]
