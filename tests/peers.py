"""Servers on loopback that behave badly: what a command may meet where MLflow should be."""

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def silent(line: socket.socket) -> None:
    """Accepts, and says nothing."""
    time.sleep(60)


def drips_its_header(line: socket.socket) -> None:
    for byte in _HEAD + b"X-Long: " + b"y" * 1000:
        line.send(bytes([byte]))
        time.sleep(0.1)


def drips_its_body(line: socket.socket) -> None:
    line.sendall(_HEAD + b"\r\n")
    while True:
        line.send(b" ")
        time.sleep(0.1)


def redirects_for_ever(line: socket.socket) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    line.sendall(answer)
    while line.recv(65536):
        time.sleep(0.3)
        line.sendall(answer)


def is_never_available(line: socket.socket) -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
    line.sendall(answer)
    while line.recv(65536):
        line.sendall(answer)


def answers_without_end(line: socket.socket) -> None:
    line.sendall(_HEAD + b"\r\n")
    while True:
        line.sendall(b" " * (1 << 20))


BAD = (silent, drips_its_header, drips_its_body, redirects_for_ever, is_never_available, answers_without_end)


@contextmanager
def peer(behaviour: Callable[[socket.socket], None]) -> Generator[int]:
    """Listen with one of the behaviours above; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with suppress(OSError):
                while True:
                    line, _ = server.accept()
                    threading.Thread(target=serve, args=(line,), daemon=True).start()

        def serve(line: socket.socket) -> None:
            with suppress(OSError), line:
                if behaviour is not silent:
                    line.recv(65536)
                behaviour(line)

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
