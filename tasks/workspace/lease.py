"""Who works here, as a file that one process at a time may hold, with a heartbeat.

A process on this machine that ends, in whatever way, lets go by itself: the file is flocked. A machine that is gone, or
one to which locks of a shared folder do not reach, is found out by its heartbeat: a counter in the file that stands
still for longer than its owner said. No two machines' clocks are compared, and no wall clock is read: the counter is
watched, on this machine's own monotonic clock.

Whoever takes a lease over puts a new file in the old one's place. An owner that was only asleep sees that another file
lies there, and stops before it writes (`Lease.check`).
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from dass.errors import InfrastructureError, InputError
from tasks.workspace.flocked import take_flock

VARIABLE = "DASS_LEASE"
"""Seconds that a run may be silent before another may take its place."""

_SILENCE = 60.0
_SHORTEST, _LONGEST = 1.0, 3_600.0
_BEATS = 12  # within the silence that an owner may keep
_FAREWELL_SECONDS = 2.0
_TRIES = 5  # the file may be exchanged while we open it

logger = logging.getLogger("dass")


class LeaseLostError(InfrastructureError):
    """Another run took this one's place while it was silent."""


@dataclass(frozen=True)
class Owner:
    """What the file says.

    Attributes:
        token: random; another one is another owner.
        pid, command, since: its process, for messages.
        host: its machine, for messages.
        machine, boot: which machine, and since which start of it.
        silence: seconds it may be silent.
        beats: its heartbeat's count.
        at: its machine's monotonic clock at the last beat.
        work: what to mark as lost when it is, name -> id.
    """

    token: str
    pid: int
    command: str
    since: str
    host: str
    machine: str
    boot: str
    silence: float
    beats: int = 0
    at: float = 0.0
    work: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        return cls(
            secrets.token_hex(8),
            os.getpid(),
            " ".join(sys.argv),
            datetime.now().astimezone().isoformat(timespec="seconds"),
            socket.gethostname(),
            _machine(),
            _boot(),
            silence_allowed(),
            at=time.monotonic(),
        )

    @classmethod
    def read(cls, text: str) -> "Owner | None":
        """None: it has not written itself yet, or is another version's."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def told(self) -> str:
        where = "" if self.machine == _machine() else f" on {self.host}"
        return f"process {self.pid}{where}, since {self.since}: {self.command}"


def silence_allowed() -> float:
    """How long a run may be silent.

    Raises:
        InputError: DASS_LEASE is no such number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else _SILENCE
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InputError(f"{VARIABLE} is {text!r}: expected seconds, {_SHORTEST:g} to {_LONGEST:g}.")
    return seconds


class Lease:
    """A lease that this process holds.

    Attributes:
        path: the file.
        lost: the owner whose place this one took; None: it had been given back.
        reason: why that one was lost.
    """

    def __init__(self, path: Path, file: IO[str], lost: Owner | None, reason: str) -> None:
        self.path, self.lost, self.reason = path, lost, reason
        self._on_loss: Callable[[], object] = lambda: None
        self._file = file
        self._owner = Owner.here()
        self._writes = threading.Lock()
        self._is_over = threading.Event()
        self._write()
        self._heart = threading.Thread(target=self._beat, name=f"heartbeat of {path.name}", daemon=True)

    def start(self, on_loss: Callable[[], object]) -> None:
        """Let the heart beat; `on_loss` is called by its thread when another one holds the lease."""
        self._on_loss = on_loss
        self._heart.start()

    def note(self, **work: str) -> None:
        """Say what is to be marked as lost when this process is."""
        with self._writes:
            self._owner = replace(self._owner, work={**self._owner.work, **work})
            self._write()

    def check(self) -> None:
        """Raises LeaseLostError: another one holds it now, so nothing may be written any more."""
        if _is_at(self._file, self.path):
            return
        other = Owner.read(_text(self.path))
        told = "it was removed" if other is None else other.told
        raise LeaseLostError(
            f"{self.path.parent.parent} was taken over by another run ({told}): this one had been silent for longer "
            f"than {self._owner.silence:g} s. It wrote nothing more; finished layers are kept."
        )

    def release(self) -> None:
        """Give it back."""
        self._is_over.set()
        self._heart.join(_FAREWELL_SECONDS)
        if _is_at(self._file, self.path):
            self._file.truncate(0)
        self._file.close()

    def _beat(self) -> None:
        while not self._is_over.wait(self._owner.silence / _BEATS):
            with suppress(OSError), self._writes:  # a disk that fails for a moment: the next beat tries again
                if _is_at(self._file, self.path):
                    self._owner = replace(self._owner, beats=self._owner.beats + 1, at=time.monotonic())
                    self._write()
                    continue
                self._on_loss()
                return

    def _write(self) -> None:
        """The record in one write; spaces behind a shorter one, so that the file is never empty meanwhile."""
        text = json.dumps(asdict(self._owner)).encode()
        size = os.fstat(self._file.fileno()).st_size
        os.pwrite(self._file.fileno(), text.ljust(size), 0)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, for one who only looks.

    Attributes:
        owner: what the file says.
        state: "alive"; "lost"; "elsewhere": on another machine, where only its heartbeat could tell, which was not
            watched.
        reason: why it was lost.
        is_dead: whether its process is gone. One of this machine that was lost may only be asleep; of another's nobody
            here can say more than that it was not heard of.
    """

    owner: Owner
    state: Literal["alive", "lost", "elsewhere"]
    reason: str | None = None
    is_dead: bool = False


def holder(path: Path, *, watch: bool = False) -> Holder | None:
    """Who holds a lease; None: nobody. Nothing is taken or written.

    Args:
        path: the file.
        watch: also the heartbeat of one on another machine, which takes as long as it may be silent.
    """
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        else:
            fcntl.flock(file, fcntl.LOCK_UN)
            is_free = True
        owner = Owner.read(file.read())
    if owner is None:
        return None
    is_elsewhere = owner.boot != _boot() and not (is_free and owner.machine == _machine())
    if is_elsewhere and not watch:
        return Holder(owner, "elsewhere")
    reason = fate(owner, is_free, lambda: Owner.read(_text(path)))
    return Holder(owner, "alive") if reason is None else Holder(owner, "lost", reason, is_free or is_elsewhere)


def take_lease(path: Path, what: str, on_loss: Callable[[], object] = lambda: None) -> Lease:
    """Take the lease, over from an owner that was lost where it was.

    Args:
        path: the file; its folder exists.
        what: is held, for messages.
        on_loss: called, in another thread, when this process finds out that it was taken for lost.

    Raises:
        InputError: another process holds it; the message names it.
        OSError: the file cannot be written.
    """
    for _ in range(_TRIES):
        lease = _tried(path, what)
        if lease is not None:
            lease.start(on_loss)
            return lease
    raise _held(what, None)


def _tried(path: Path, what: str) -> Lease | None:
    """None: the file was exchanged meanwhile."""
    file = _opened(path)
    is_taken = False
    try:
        is_free = take_flock(file)
        if not _is_at(file, path):
            return None
        text = _text(path)
        owner = Owner.read(text)
        if not is_free and owner is None:
            raise _held(what, None)
        if is_free and not text.strip():
            is_taken = True
            return Lease(path, file, None, "")
        reason = "it was another version's" if owner is None else fate(owner, is_free, lambda: Owner.read(_text(path)))
        if reason is None:
            raise _held(what, owner)
        return _taken_over(path, owner, reason)
    finally:
        if not is_taken:
            file.close()


def _taken_over(path: Path, owner: Owner | None, reason: str) -> Lease | None:
    """A lease in a new file, which takes the place of a lost one's; None: somebody else did so."""
    beside = path.with_name(f"{path.name}.next")
    file = _opened(beside)
    now = Owner.read(_text(path))
    if not take_flock(file) or not _is_at(file, beside) or now != owner:
        file.close()
        return None
    lease = Lease(path, file, owner, reason)
    os.replace(beside, path)
    return lease


def fate(owner: Owner, is_free: bool, look: Callable[[], Owner | None], clock: Any = time) -> str | None:
    """What became of an owner.

    Args:
        owner: what the file says.
        is_free: whether nobody on this machine has the file locked.
        look: reads the file again.
        clock: has `monotonic` and `sleep`.

    Returns:
        Why it was lost; None: it lives.
    """
    if owner.boot == _boot():
        if is_free:
            return "its process was killed"
        silent = clock.monotonic() - owner.at
        return None if silent <= owner.silence else f"it has been silent for {silent:.0f} s"
    if is_free and owner.machine == _machine():
        return "its machine was restarted"
    logger.info("held by %s: watching its heartbeat for up to %g s", owner.told, owner.silence)
    since = clock.monotonic()
    while (now := look()) is not None and (now.token, now.beats) == (owner.token, owner.beats):
        if clock.monotonic() - since > owner.silence:
            return f"nothing has been heard of {owner.host} for {owner.silence:g} s"
        clock.sleep(owner.silence / _BEATS / 2)
    return None


def _held(what: str, owner: Owner | None) -> InputError:
    told = "process unknown, just started" if owner is None else owner.told
    return InputError(f"{what} is held by another run ({told}). Wait for it, or stop it.")


def _opened(path: Path) -> IO[str]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file still lies there. The path is opened: a shared folder's attributes may be old."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.path.sameopenfile(handle, file.fileno())
    finally:
        os.close(handle)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _boot() -> str:
    """Of this start of this machine."""
    return _first_line("/proc/sys/kernel/random/boot_id") or _machine()


def _machine() -> str:
    """Of this machine. Its name, too: machines made from one image may have one id."""
    return f"{_first_line('/etc/machine-id')} {socket.gethostname()}"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
