"""Stores that stop in the middle of a transfer: connections over which no byte moves any more are ended.

What speaks to a store bounds the wait for an answer, and not the sending of a file to a server that accepts it and
never reads it. The kernel knows what the other side has acknowledged and sent: as long as that grows, however slowly, a
transfer may take as long as it needs.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tasks.workspace.patience import VARIABLE, Overdue

_LOOK_SECONDS, _AGAIN_SECONDS = 0.5, 0.05
_BYTES = struct.Struct("=QQ")
_BYTES_AT = 120  # tcpi_bytes_acked and tcpi_bytes_received in Linux' struct tcp_info


@contextmanager
def ended_when_still(seconds: float) -> Iterator[None]:
    """While entered, watch the connections of all fsspec's stores, and end them when no byte has moved for so long.

    Whoever uses them gets an error then, and so do its further tries. Not where the kernel does not count (Linux does).

    Raises:
        Overdue: in the place of that error.
    """
    from fsspec.asyn import get_loop

    watch = _Watch(seconds)
    watching = asyncio.run_coroutine_threadsafe(watch.run(), get_loop())
    try:
        yield
    except Exception as error:
        if watch.has_ended:
            raise Overdue(f"no byte has moved for {seconds:.3g} s ({VARIABLE} is {seconds:g})") from error
        raise
    finally:
        watching.cancel()


class _Watch:
    """Looks at the connections of the event loop that it runs in.

    Attributes:
        has_ended: whether it has ended them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.has_ended = False

    async def run(self) -> None:
        look = min(_LOOK_SECONDS, self._seconds / 4)
        before: dict[int, tuple[int, int]] = {}
        still = 0.0
        while True:
            began = time.monotonic()
            await asyncio.sleep(look)
            lines = _lines(asyncio.get_running_loop())
            moved = {id(line): count for line in lines if (count := _moved(line)) is not None}
            is_asked = len(asyncio.all_tasks()) > 1  # besides this one
            # A process that was stopped, or a loop that was busy, has not waited for anybody.
            waited = min(time.monotonic() - began, 2 * look)
            still = still + waited if is_asked and moved and moved == before else 0.0
            before = moved
            self.has_ended = self.has_ended or still > self._seconds
            if self.has_ended:
                look = _AGAIN_SECONDS
                for line in lines:
                    line.abort()


def _lines(loop: asyncio.AbstractEventLoop) -> list[Any]:
    """The open connections of an event loop. asyncio has no public list of them."""
    return list(getattr(loop, "_transports", {}).values())


def _moved(line: Any) -> tuple[int, int] | None:
    """Bytes that the other side has acknowledged, and has sent; None: this is no TCP, or nobody counts them."""
    with suppress(OSError, AttributeError, struct.error):
        told = line.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_AT + _BYTES.size)
        acknowledged, received = _BYTES.unpack_from(told, _BYTES_AT)
        return acknowledged, received
    return None
