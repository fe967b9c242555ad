"""The stack as one thing: up, down, and what of it works."""

import secrets
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dass.errors import InfrastructureError, InputError
from flows.stack import postgres
from flows.stack.accounts import ROLES, make_account
from flows.stack.place import Place, Ports, State
from flows.stack.processes import Started, stop
from flows.stack.services import MLFLOW, PREFECT, WORKER, services
from tasks.workspace.folder import Workspace

PORTS = Ports(postgres=55432, mlflow=5000, prefect=4200, worker=8081)
POSTGRES = "postgres"
ORDER = (POSTGRES, MLFLOW, PREFECT, WORKER)
"""In which they start."""

_END_SECONDS = {POSTGRES: 60.0, WORKER: 30.0}
_OTHERWISE = 20.0
_NOBODY = Started(0, "")


@dataclass(frozen=True)
class Found:
    """A service, as it is now.

    Attributes:
        name: of it.
        state: "works"; "silent": its process is there and does not answer; "ended": it was started and is gone;
            "stopped".
        pid: its process.
        address: where it is for people, or for its clients.
        log: what it says.
    """

    name: str
    state: str
    pid: int | None
    address: str | None
    log: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Stack:
    """A stack as it is now.

    Attributes:
        folder: where it keeps its data, logs and logins.
        services: each of them.
        accounts: name -> the file of its login.
        started: what this command started; none: everything ran.
    """

    folder: str
    services: list[Found]
    accounts: dict[str, str]
    started: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def up(ws: Workspace, host: str | None, asked: dict[str, int | None], tell: Callable[[str], None]) -> Stack:
    """Start what does not run. Returns when everything answers, and asks for a login.

    Args:
        ws: whose stack it is. The worker's runs begin in its folder.
        host: the address for MLflow and Prefect to listen at; None: the one that is listened at, else loopback.
        asked: ports, as `Ports` has them; None: the one that is listened at, else the usual one.
        tell: gets a line when something was started.

    Raises:
        InputError: something is not installed, a port is taken, or what runs listens elsewhere.
        InfrastructureError: a service did not start. What this command started was stopped.
    """
    if find_spec("flask_wtf") is None:
        raise InputError("MLflow's logins need Flask-WTF. Run: pip install 'dass[stack]'")
    postgres.programs()
    postgres.account()
    place = Place.of(ws)
    with place.held():
        place.make()
        before = place.state()
        running = {name for name, each in before.services.items() if each.is_alive} if before else set()
        state = _agreed(before, bool(running), host, asked)
        if before is not None:
            _end(before, set(ORDER) - running)  # what outlived one that was killed, or a start that was
        _check_ports(state, running)
        place.note(state)
        begun: list[str] = []
        try:
            for name, begin in _steps(ws, place, state):
                if name in running:
                    continue
                state.services[name] = begin()
                begun.append(name)
                place.note(state)
                tell(f"{name}: started (log: {place.log(name)})")
        except BaseException:
            _end(state, set(ORDER) - running)
            place.note(state if running else None)
            raise
        stack = _look(ws, place, state, begun)
    silent = [each.name for each in stack.services if each.state != "works"]
    if silent:
        raise InfrastructureError(
            f"{', '.join(silent)} of the stack in {place.root} runs and does not answer. "
            "Run: dass stack down, then dass stack up"
        )
    return stack


def down(ws: Workspace, purge: bool, tell: Callable[[str], None]) -> Path | None:
    """Stop what `up` started, and nothing else.

    Args:
        ws: whose stack it is.
        purge: also remove its data, logs and logins.
        tell: gets a line when something was stopped.

    Returns:
        Where its data is; None: there is none.
    """
    place = Place.of(ws)
    if not place.root.exists():
        return None
    with place.held():
        state = place.state()
        if state is not None:
            _end(state, set(ORDER), tell)
            place.note(None)
        if purge:
            shutil.rmtree(place.root)
            return None
    return place.root


def status(ws: Workspace) -> Stack:
    """What of the stack works."""
    place = Place.of(ws)
    return _look(ws, place, place.state(), [])


def account(ws: Workspace, name: str, role: str) -> Path:
    """An account on the stack's MLflow server, with a role; the file of its login.

    Raises:
        InputError: as `flows.stack.accounts.make_account`, or the stack does not run.
    """
    place = Place.of(ws)
    state = place.state()
    if state is None:
        raise InputError(f"No stack runs in {place.root}. Run: dass stack up")
    with place.held():
        return make_account(place, state.host, state.ports, name, role)


def _agreed(before: State | None, runs: bool, host: str | None, asked: dict[str, int | None]) -> State:
    """Where this start listens: where it did, else as asked, else as usual.

    Args:
        before: what was noted.
        runs: whether any of that runs.
        host, asked: as for `up`.
    """
    if before is not None and runs:
        has = {"host": before.host, **asdict(before.ports)}
        for name, value in {"host": host, **asked}.items():
            if value is not None and value != has[name]:
                raise InputError(
                    f"The stack that runs has {name} {has[name]}, not {value}. Run: dass stack down, then start it anew"
                )
        return before
    known = asdict(PORTS)
    ports = Ports(**{name: asked.get(name) or port for name, port in known.items()})
    if len(set(asdict(ports).values())) < len(known):
        raise InputError(f"Two services have one port: {asdict(ports)}. Give each its own.")
    return State(host or "127.0.0.1", ports, secrets.token_hex(8), {})


def _check_ports(state: State, running: set[str]) -> None:
    """Raise InputError when somebody else listens where a service is to be started."""
    for name, port in asdict(state.ports).items():
        host = state.host if name in ("mlflow", "prefect") else postgres.HOST
        if name in running:
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise InputError(
                    f"Port {port} of {host} cannot be listened at, and {name} needs one ({error.strerror}). "
                    f"Choose another: --{name}-port PORT"
                ) from None


def _steps(ws: Workspace, place: Place, state: State) -> list[tuple[str, Callable[[], Any]]]:
    """Name of a service -> what starts it, in order."""
    ports = state.ports
    rest = services(place, ws.root, state.host, ports, state.mark)

    def begin_postgres() -> Any:
        process = postgres.start(place, ports.postgres, f"{state.mark}/{POSTGRES}")
        state.services[POSTGRES] = process
        postgres.make_databases(place, ports.postgres)
        return process

    def begin_worker() -> Any:
        for role in ROLES:
            make_account(place, state.host, ports, role, role)
        return rest[WORKER].begin()

    begin = {**{name: each.begin for name, each in rest.items()}, POSTGRES: begin_postgres, WORKER: begin_worker}
    return [(name, begin[name]) for name in ORDER]


def _end(state: State, names: set[str], tell: Callable[[str], None] = lambda _: None) -> None:
    """The last that was started first; also what was not noted any more, by its mark."""
    for name in reversed(ORDER):
        if name in names:
            ask = postgres.STOP if name == POSTGRES else signal.SIGTERM
            noted = state.services.get(name, _NOBODY)
            if stop(noted, f"{state.mark}/{name}", _END_SECONDS.get(name, _OTHERWISE), ask):
                tell(f"{name}: stopped")


def _look(ws: Workspace, place: Place, state: State | None, started: list[str]) -> Stack:
    found = []
    rest = {} if state is None else services(place, ws.root, state.host, state.ports, state.mark)
    for name in ORDER:
        process = None if state is None else state.services.get(name)
        address = None
        if state is not None and name == POSTGRES:
            address = f"{postgres.HOST}:{state.ports.postgres}"
        elif name in rest:
            address = rest[name].address
        if process is None:
            how = "stopped"
        elif not process.is_alive:
            how = "ended"
        else:
            assert state is not None
            works = postgres.works(place, state.ports.postgres) if name == POSTGRES else rest[name].works()
            how = "works" if works else "silent"
        found.append(Found(name, how, process.pid if process else None, address, str(place.log(name))))
    files = sorted(place.accounts.glob("*.env")) if place.accounts.is_dir() else []
    return Stack(str(place.root), found, {each.stem: str(each) for each in files}, started)
