"""The Prefect server of a command: the one that Prefect's settings name, or one of our own for as long as it works."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from dass.errors import InfrastructureError, InputError
from flows.prefect_database import Database
from flows.prefect_login import CLIENT, SERVER, Login
from flows.prefect_settings import origin, prefect_settings
from tasks.sources.waiting import in_time
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import holds
from tasks.workspace.patience import Overdue
from tasks.workspace.redaction import shown_address
from tasks.workspace.tied import tied

if TYPE_CHECKING:
    from prefect.settings import Settings

_ANSWER_SECONDS = 6.0
_STARTUP_SECONDS = 90.0  # it makes its database first, which took 10 s
_LAST_WORDS_SECONDS = 1.5
_END_SECONDS = 2.0
_URL = "PREFECT_API_URL"
OWN = "DASS_OWN_PREFECT_SERVER"
"""Set while the server is one that a command started: its address is gone with it."""
_PATIENCE = (  # with a server that falls silent while we work: Prefect's own is ten minutes; a restart takes half a one
    ("APISettings", "request_timeout", "PREFECT_API_REQUEST_TIMEOUT", "30"),
    ("ClientSettings", "max_retries", "PREFECT_CLIENT_MAX_RETRIES", "4"),
)

_HERE = Path(__file__).resolve().parents[1]
_APP, _EPHEMERAL = "flows.prefect_app:create_app", "PREFECT__SERVER_EPHEMERAL"
_QUIET = ("--log-level", "error", "--lifespan", "on")
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*: ")
_LINES_KEPT = 500


class ServerError(InfrastructureError):
    """A Prefect server of our own did not start, or the one we spoke to fell silent."""


@dataclass(frozen=True)
class Server:
    """A Prefect server that flows report to.

    Attributes:
        api: its API's address.
        login: what a server of our own asks for; None: it is not ours, and Prefect's settings hold the login, if any.
    """

    api: str
    login: Login | None


@contextmanager
def prefect_server(
    ws: Workspace, schedules: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[Server]:
    """The server that flows inside report to.

    Args:
        ws: the workspace; a damaged database in its private folder is made anew. While it is locked, runs that were
            killed are called crashed there; at a server that was there, those of deployments that died on this machine.
        schedules: whether an own server also keeps schedules and shows its UI.
        meanwhile: done while the server starts, such as slow imports.

    Raises:
        InputError: a setting of Prefect's cannot be used, the server they name does not answer as one, or the database
            they name cannot be used.
        ServerError: an own server did not start.
    """
    settings = prefect_settings()
    given = settings.api.url
    with _given_server(settings) if given else own_server(schedules, ws.private, meanwhile, settings) as server:
        if given:
            from flows.slots import free_slots

            meanwhile()
            free_slots(ws)
        elif holds(ws) and Database.of(settings, ws.private).disposable:
            from flows.cancellation import crash_unfinished

            crash_unfinished(str(ws.root))
        try:
            yield server
        except Exception as error:
            if told := _outage(error, server.api):
                where = shown_address(server.api)
                raise ServerError(f"The Prefect server at {where} {told}. Finished layers are kept.") from error
            raise


@contextmanager
def _given_server(settings: "Settings") -> Iterator[Server]:
    check_api(settings)
    for section, field, variable, value in _PATIENCE:
        if origin(section, field) is None:
            os.environ[variable] = value
    _refresh()
    try:
        yield Server(str(settings.api.url), None)
    finally:
        _finish_reports()


def _outage(error: BaseException | None, api: str) -> str | None:
    """What became of the server, when that is why `error` came about: it does not answer any more, fails, or does not
    take the login that it took."""
    from httpx import HTTPStatusError, RequestError

    while error is not None:
        if isinstance(error, RequestError) and str(error.request.url).startswith(api):
            return f"fell silent ({_refusal(error)})"
        if isinstance(error, HTTPStatusError) and str(error.request.url).startswith(api):
            status = error.response.status_code
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return f"failed ({_refusal(error)})"
            if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return f"refuses the login ({_refusal(error)})"
        error = error.__cause__ or error.__context__
    return None


def check_api(settings: "Settings") -> None:
    """Ask the server that Prefect's settings name for something small, with whatever login they hold.

    Raises:
        InputError: it does not answer in time, or not as a Prefect server does. Names where the address comes from.
    """
    try:
        count = in_time(_count_runs, _ANSWER_SECONDS)
        reason = None if isinstance(count, int) else "another service answers there"
    except Overdue:
        reason = f"no answer within {_ANSWER_SECONDS:g} s"
    except Exception as error:
        reason = _refusal(error)
    if reason is not None:
        where = origin("APISettings", "url")
        raise InputError(
            f"{_URL} is {shown_address(str(settings.api.url))} ({where}): no Prefect server answers there ({reason}). "
            "Start it, correct the address or the login, or unset it."
        )


def _count_runs() -> object:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _ANSWER_SECONDS}
    with temporary_settings(once), get_client(sync_client=True) as client:
        return client.request("POST", "/flow_runs/count", json={}).json()


def _refusal(error: Exception) -> str:
    """Why a request failed, in a few words."""
    from httpx import HTTPStatusError

    if isinstance(error, HTTPStatusError):
        return f"status {error.response.status_code} {error.response.reason_phrase}".strip()
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):  # what came is no JSON
        return "another service answers there"
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def own_server(
    schedules: bool = False,
    private: Path | None = None,
    meanwhile: Callable[[], object] = lambda: None,
    settings: "Settings | None" = None,
) -> Iterator[Server]:
    """Start a Prefect server on this machine's loopback, and stop it at the end. It ends with this process in any case.

    It answers to this machine's own names, to no other site's pages, and to those who know its login. Until the end its
    address and login are in this process's environment, for Prefect here and in every child.

    Args:
        schedules: whether it also keeps schedules and shows its UI.
        private: a damaged database inside this folder is made anew.
        meanwhile: done while it starts.
        settings: Prefect's, when they are known already.

    Raises:
        InputError: the database that Prefect's settings name cannot be used.
        ServerError: it did not come up for another reason.
    """
    settings = settings or prefect_settings()
    database, login = Database.of(settings, private), Login.of(settings)
    before = {name: os.environ.get(name) for name in (_URL, CLIENT, OWN)}
    os.environ.pop(_URL, None)
    with ExitStack() as until_end:
        until_end.callback(_speak_to, before)
        with database.starting():
            database.check()
            process = _started(database, login, schedules, meanwhile)
            until_end.callback(process.stop)
            until_end.enter_context(database.in_use())
        until_end.callback(_finish_reports)
        _speak_to({_URL: process.api, CLIENT: login.secret, OWN: "1"})
        yield Server(process.api, login)


def _started(database: Database, login: Login, schedules: bool, meanwhile: Callable[[], object]) -> "_Process":
    process = _Process(login, schedules)
    try:
        meanwhile()
        process.wait()
    except _Failed as error:
        process.stop()
        if database.is_blamed(error.line):
            database.make_anew(error.reason)
        elif "address already in use" not in error.said:  # there, another program was quicker
            raise ServerError(f"{error}. Its database: {database.name}") from None
        process = _Process(login, schedules)
        try:
            process.wait()
        except BaseException:
            process.stop()
            raise
    except BaseException:
        process.stop()
        raise
    return process


def _speak_to(variables: dict[str, str | None]) -> None:
    """Name a server and its login to Prefect here and in every child, or none."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _refresh()


def _refresh() -> None:
    """Have Prefect read its settings again: it did when it was imported."""
    import prefect.context

    prefect.context.refresh_global_settings_context()


def _finish_reports() -> None:
    """Send what Prefect still has to tell while its server listens: at exit it would go on trying for minutes."""
    for module, worker in (("prefect.events.worker", "EventsWorker"), ("prefect.logging.handlers", "APILogWorker")):
        if module in sys.modules:
            getattr(sys.modules[module], worker).drain_all(timeout=_LAST_WORDS_SECONDS)


class _Failed(ServerError):
    """An own server ended instead of starting.

    Attributes:
        said: what it wrote.
        line: the line of it that matters.
        reason: the same, without the error's type.
    """

    def __init__(self, status: int | None, said: str) -> None:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"status {status}"]
        self.said, self.line = said, next(filter(_ERROR.match, reversed(lines)), lines[-1])
        self.reason = self.line.partition(": ")[2].strip().rstrip(".") or self.line
        super().__init__(f"Prefect's server did not start: {self.reason}")


class _Process:
    """A server's process, in a session of its own: Ctrl-C is for us, and it must outlive our last word to it."""

    def __init__(self, login: Login, schedules: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        self.api = f"{address}/api"
        # The UI asks where it was loaded from, whatever name or forwarded port that was.
        how = {"PREFECT_UI_API_URL": "/api"} if schedules else {"PREFECT_UI_ENABLED": "0", _EPHEMERAL: "1"}
        closed = {SERVER: login.secret, "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": address}
        self._process = subprocess.Popen(
            tied(
                # uvicorn puts a folder first on the path: by default the current one, where a user's typing.py may lie.
                *("uvicorn", "--factory", _APP, "--app-dir", str(_HERE)),
                *("--host", "127.0.0.1", "--port", str(port), *_QUIET),
            ),
            env={**os.environ, "PREFECT__SERVER_FINAL": "1", **how, **closed},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self._said: deque[bytes] = deque(maxlen=_LINES_KEPT)
        self._reader = threading.Thread(target=self._said.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Return when it answers. Raises ServerError: it ended, took too long, or answers those who do not log in."""
        deadline = time.monotonic() + _STARTUP_SECONDS
        while _answer(f"{self.api}/health") != HTTPStatus.OK:
            if self._process.poll() is not None:
                self._reader.join(1.0)
                raise _Failed(self._process.returncode, b"".join(self._said).decode(errors="replace"))
            if time.monotonic() > deadline:
                raise ServerError(f"Prefect's server did not start within {_STARTUP_SECONDS:.0f} s")
            time.sleep(0.1)
        if _answer(f"{self.api}/admin/version") != HTTPStatus.UNAUTHORIZED:
            raise ServerError(f"Prefect's server at {self.api} asks for no login. It is not used")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answer(url: str) -> int | None:
    """The status of a request without a login; None: nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
