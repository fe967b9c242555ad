"""Connections of fsspec's own event loop to a server of this machine that reads as it likes."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
from fsspec.asyn import get_loop, sync

from dass.errors import InfrastructureError
from tasks.versioning.stillness import ended_when_still

_SIZE = 12_000_000  # more than fits into the buffers of a connection on this machine


@contextmanager
def server(read: Callable[[socket.socket], object]) -> Generator[int]:
    """The port of a server that takes one connection and does this with it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            line, _ = listening.accept()
            with line:
                read(line)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]


def send(port: int, size: int = _SIZE) -> None:
    """Send so much, and wait for one byte, as a store's driver does: in fsspec's loop."""

    async def sending() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(size))
        await writer.drain()
        await reader.readexactly(1)
        writer.close()

    sync(get_loop(), sending)


def nothing(line: socket.socket) -> None:
    time.sleep(30)


def slowly(line: socket.socket) -> None:
    left = _SIZE
    for _ in range(8):
        time.sleep(0.3)
        left -= len(line.recv(300_000))
    while left:
        left -= len(line.recv(1 << 20))
    line.sendall(b".")


def everything_then_silence(line: socket.socket) -> None:
    line.recv(1000, socket.MSG_WAITALL)
    time.sleep(30)


@pytest.mark.parametrize(("read", "size"), [(nothing, _SIZE), (everything_then_silence, 1000)])
def test_a_server_that_stands_still_is_waited_for_no_longer_than_told(
    read: Callable[[socket.socket], object], size: int
) -> None:
    began = time.monotonic()
    with (
        server(read) as port,
        pytest.raises(InfrastructureError, match=r"no byte has moved for 0\.5 s"),
        ended_when_still(0.5),
    ):
        send(port, size)
    assert 0.5 < time.monotonic() - began < 5


def test_a_server_that_reads_slowly_gets_everything() -> None:
    with server(slowly) as port, ended_when_still(1.0):
        send(port)


def test_a_loop_that_is_busy_waits_for_nobody() -> None:
    async def connected_and_busy() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.3)
        time.sleep(1.5)
        await asyncio.sleep(0.3)
        assert not writer.is_closing()
        writer.close()

    with server(nothing) as port, ended_when_still(1.2):
        sync(get_loop(), connected_and_busy)


def test_a_connection_that_nobody_waits_at_may_stand_still() -> None:
    async def connected() -> asyncio.StreamWriter:
        return (await asyncio.open_connection("127.0.0.1", port))[1]

    with server(nothing) as port, ended_when_still(0.4):
        writer = sync(get_loop(), connected)
        time.sleep(1.2)
        assert not writer.is_closing()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="other"), ended_when_still(1.0):
        raise ValueError("other")
