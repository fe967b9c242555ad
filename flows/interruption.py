"""Ctrl-C, SIGTERM and SIGHUP: a command has a moment to put things in order, and ends in any case.

Whatever it started is tied to it (`tasks.workspace.tied`) or stopped on the way out.
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOLD = "dass: interrupted. Finished layers are kept; run again to go on."

_GRACE_SECONDS = 4.0
_SAME_SECONDS = 0.3  # `timeout` sends two at once
_LEAVING_SECONDS = 5.0


class Interruption:
    """Turns the first signal into KeyboardInterrupt, and has the process end soon; a second Ctrl-C ends it at once.

    Attributes:
        number: the signal that came first; None: none yet.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._raised = False
        self._left_with: int | None = None
        atexit.register(self._end)  # what was registered first is called last
        self._reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)  # heard while Python is inside a long call, too
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._raise)
        threading.Thread(target=self._watch, name="ends when interrupted", daemon=True).start()

    @property
    def status(self) -> int | None:
        """What the process ends with when it was interrupted: 128 + the signal's number."""
        return None if self.number is None else 128 + self.number

    def leave(self, status: int) -> None:
        """The work is done: whatever the libraries' threads still want, the process ends soon, with this status."""
        self._left_with = status
        ending = threading.Timer(_LEAVING_SECONDS, os._exit, (status,))
        ending.daemon = True
        ending.start()

    def _end(self) -> None:
        """The last thing at exit: taking an interpreter apart in which torch is loaded takes seconds."""
        if self._left_with is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(self._left_with)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._raised:
            self._raised = True
            self.number = self.number or number
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Hear every signal, also those that Prefect handles itself while a flow runs."""
        while not (came := self._heard(None)):
            pass
        self.number = self.number or came[0]
        first = time.monotonic()
        while (left := first + _GRACE_SECONDS - time.monotonic()) > 0:
            again = signal.SIGINT in self._heard(left)
            if again and time.monotonic() > first + _SAME_SECONDS:
                break
        with suppress(OSError):  # the terminal was closed
            os.write(2, f"{TOLD}\n".encode())
        os._exit(128 + self.number)

    def _heard(self, seconds: float | None) -> list[int]:
        ready, _, _ = select.select([self._reads], [], [], seconds)
        return [number for number in os.read(self._reads, 64) if number in SIGNALS] if ready else []
