"""A TCP line to a server on this machine that can be slow, fall silent, read no more or be cut, after so many bytes."""

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

_PART = 16_384


class Link:
    """The line. Everything of it can be changed while it is used.

    Attributes:
        port: where it is entered.
        rate: bytes a second it passes on, each way; None: as many as come.
        passed: bytes that went towards the server.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.rate: float | None = None
        self.passed = 0
        self._after: tuple[int, Callable[[], None]] | None = None
        self._is_cut = self._is_silent = self._is_full = False
        self._lines: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def then(self, more: int, action: Callable[[], None]) -> None:
        """Do something, once, when so many more bytes went towards the server."""
        self._after = (self.passed + more, action)

    def cut(self) -> None:
        """Every connection ends, and new ones do at once."""
        self._is_cut = True
        self._end_all()

    def fall_silent(self) -> None:
        """The server gets everything, and nothing of what it answers comes back."""
        self._is_silent = True

    def read_no_more(self) -> None:
        """The server is there, and reads nothing of what is sent to it: what does not fit into buffers stays unsent."""
        self._is_full = True

    def mend(self) -> None:
        """New connections are as they should be."""
        self._end_all()
        self._is_cut = self._is_silent = self._is_full = False
        self.rate = self._after = None

    def end(self) -> None:
        self.cut()
        self._listening.close()

    def _end_all(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._lines += [near, far]
            for source, sink, counts in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while part := source.recv(_PART):
                if counts:
                    self._count(len(part))
                while self._is_full if counts else self._is_silent:
                    time.sleep(0.05)
                if self.rate is not None:
                    time.sleep(len(part) / self.rate)
                sink.sendall(part)
        for line in (source, sink):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        with self._lock:
            self.passed += size
            due = self._after if self._after and self.passed >= self._after[0] else None
            if due:
                self._after = None
        if due:
            due[1]()


@contextmanager
def link_to(port: int) -> Generator[Link]:
    """A line to a port of this machine."""
    link = Link(port)
    try:
        yield link
    finally:
        link.end()
