"""MLflow's HTTP requests, each with a deadline for its whole answer.

The timeouts of requests and urllib3 are for one read each, so a server that sends a byte now and then is never late.
Here a watchdog shuts the connection when the answer is not complete in time, whatever it waits for: connecting, a
header, the body, the pause before another try. Where a file is sent or fetched, the time starts anew with every part.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import requests
from mlflow.utils import request_utils
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Retry

from dass.errors import InfrastructureError
from tasks.workspace.patience import answer_seconds, is_bounded, one_answer, overdue

_LARGEST = 256 << 20  # bytes of an answer that is no file
_PART = 1 << 16  # bytes that count as progress of a download
_STORED = 4 << 20  # bytes a second at which a server that proxies may store a file before it answers

_MlflowAdapter: type[HTTPAdapter] = request_utils.TCPKeepAliveHTTPAdapter
_of_thread = threading.local()


def install() -> None:
    """Let MLflow's sessions use the adapter below from now on."""
    if request_utils.TCPKeepAliveHTTPAdapter is not BoundedAdapter:
        request_utils.TCPKeepAliveHTTPAdapter = BoundedAdapter
        request_utils._cached_get_request_session.cache_clear()


class _Watchdog:
    """Shuts the connections of one request when its time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._at = time.monotonic() + seconds
        self._lines: list[socket.socket] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        threading.Thread(target=self._guard, daemon=True, name="dass-watchdog").start()

    @property
    def left(self) -> float:
        return max(self._at - time.monotonic(), 0.0)

    def watch(self, line: socket.socket) -> None:
        """A connection of this request. A duplicate is kept: TLS takes the socket away, http.client closes it early."""
        with self._lock:
            if self.expired or self._over.is_set():
                raise overdue(self.seconds)
            self._lines.append(socket.socket(fileno=os.dup(line.fileno())))

    def extend(self, more: float = 0.0) -> None:
        """There was progress: the time starts anew."""
        self._at = time.monotonic() + self.seconds + more

    def end(self) -> None:
        self._over.set()
        with self._lock:
            while self._lines:
                self._lines.pop().close()

    def check(self) -> None:
        if self.expired:
            raise overdue(self.seconds)

    def _guard(self) -> None:
        while left := self.left:
            if self._over.wait(left):
                return
        with self._lock:
            self.expired = True
            for line in self._lines:
                with suppress(OSError):  # closed by the other side
                    line.shutdown(socket.SHUT_RDWR)
        self.end()


def _watchdog() -> _Watchdog | None:
    return getattr(_of_thread, "watchdog", None)


class _Watched:
    """A connection that shows itself to the watchdog of the request it is used for."""

    sock: Any

    def _new_conn(self) -> socket.socket:
        if dog := _watchdog():
            dog.check()
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        if dog:
            dog.watch(made)
        return made

    def request(self, *arguments: Any, **options: Any) -> None:
        dog = _watchdog()
        if dog and self.sock is not None:  # kept from an earlier request
            dog.watch(self.sock)
        super().request(*arguments, **options)  # type: ignore[misc]


class _Connection(_Watched, HTTPConnection):
    pass


class _TlsConnection(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Retry(Retry):
    """No pause is longer than what is left."""

    def sleep(self, response: Any = None) -> None:
        dog = _watchdog()
        if dog is None:
            super().sleep(response)
            return
        dog.check()
        asked = self.get_retry_after(response) if self.respect_retry_after_header and response else None
        pause = asked or self.get_backoff_time()
        if pause >= dog.left:
            raise InfrastructureError(
                f"the server answers with status {response.status} and asks for {pause:.0f} s"
                if response and asked
                else f"it failed every time for {dog.seconds:.3g} s"
            )
        time.sleep(pause)


class _Upload:
    """A file that is being sent: each part that is read from it is progress."""

    def __init__(self, file: Any, size: int, watchdog: _Watchdog) -> None:
        self._file, self._size, self._watchdog = file, size, watchdog

    def read(self, size: int = -1) -> bytes:
        part: bytes = self._file.read(size)
        self._watchdog.extend(0.0 if part else self._size / _STORED)
        return part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class BoundedAdapter(_MlflowAdapter):  # type: ignore[valid-type, misc]
    """MLflow's own adapter, with a deadline while `patience` is counted; without it, as MLflow made it."""

    def __init__(self, *arguments: Any, max_retries: Any = 0, **options: Any) -> None:
        super().__init__(*arguments, max_retries=_Retry(**vars(Retry.from_int(max_retries))), **options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, **options: Any
    ) -> requests.Response:
        if not is_bounded():
            return super().send(request, stream=stream, timeout=timeout, **options)
        if hasattr(request.body, "read"):  # sending goes on as long as it takes, and is no waiting
            return self._send(request, stream, answer_seconds(), **options)
        with one_answer() as seconds:
            return self._send(request, stream, seconds, **options)

    def _send(
        self, request: requests.PreparedRequest, stream: bool, seconds: float, **options: Any
    ) -> requests.Response:
        dog = _of_thread.watchdog = _Watchdog(seconds)
        handed_on = False
        try:
            if hasattr(request.body, "read"):
                size = int(request.headers.get("Content-Length") or 0)
                request.body = _Upload(request.body, size, dog)
                seconds += size / _STORED
            response: requests.Response = super().send(request, stream=stream, timeout=seconds, **options)
            if stream:
                _watch_parts(response, dog)
                handed_on = True
            else:
                _read(response)
            dog.check()  # a connection that was shut can look like an answer's end
            return response
        except (requests.RequestException, OSError):
            dog.check()
            raise
        finally:
            _of_thread.watchdog = None
            if not handed_on:
                dog.end()


def _read(response: requests.Response) -> None:
    """Fetch the body, as requests does behind this, but no more than can be meant."""
    body = bytearray()
    for part in response.iter_content(_PART):
        body += part
        if len(body) > _LARGEST:
            response.close()
            raise InfrastructureError(f"the answer is larger than {_LARGEST >> 20} MiB")
    response._content = bytes(body)
    response._content_consumed = True


def _watch_parts(response: requests.Response, dog: _Watchdog) -> None:
    """Let every part of the body be progress."""
    parts_of: Callable[..., Iterator[Any]] = response.iter_content

    def parts(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        try:
            dog.extend()
            for part in parts_of(min(chunk_size or _PART, _PART), decode_unicode):
                dog.check()
                yield part
                dog.extend()
            dog.check()
        except (requests.RequestException, OSError):
            dog.check()
            raise
        finally:
            dog.end()

    response.iter_content = parts  # type: ignore[method-assign]
