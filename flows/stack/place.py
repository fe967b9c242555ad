"""Where a stack keeps what it is: what runs, who may enter, what was said and what is stored."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dass.errors import InputError
from dass.files import complete_file, read_json, write_json
from flows.stack.processes import Started
from tasks.registry.private_file import read_private
from tasks.workspace.folder import Workspace

_LONGEST_SECRET = 4096


@dataclass(frozen=True)
class Ports:
    """Where the servers listen; of the worker, where it tells its health."""

    postgres: int
    mlflow: int
    prefect: int
    worker: int


@dataclass(frozen=True)
class State:
    """What runs, or ran.

    Attributes:
        host: the address that MLflow and Prefect listen at.
        ports: of each service.
        mark: what the environment of every process of this stack holds, and of no other.
        services: name -> its process.
    """

    host: str
    ports: Ports
    mark: str
    services: dict[str, Started]


class Place:
    """A stack's folder.

    Attributes:
        root: the folder: data of Postgres and MLflow's artifacts, too.
        logs: one file a service.
        accounts: a file of environment variables for each account; only this user reads them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self.accounts = root / "accounts"
        self.artifacts = root / "artifacts"
        self.postgres = root / "postgres"
        self._private = root / "private"
        self._state = root / "state.json"

    @classmethod
    def of(cls, ws: Workspace) -> "Place":
        return cls(ws.private / "stack")

    def make(self) -> None:
        """Raises OSError: it cannot be written."""
        for folder, mode in ((self.root, 0o755), (self.logs, 0o700), (self.artifacts, 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        for folder in (self._private, self.accounts):
            folder.mkdir(mode=0o700, exist_ok=True)

    def log(self, service: str) -> Path:
        return self.logs / f"{service}.log"

    def state(self) -> State | None:
        """What was noted; None: nothing was ever started here, or it was stopped.

        Raises:
            InputError: the file cannot be read.
        """
        if not self._state.exists():
            return None
        try:
            noted = read_json(self._state)
            services = {name: Started(**each) for name, each in noted.pop("services").items()}
            return State(services=services, ports=Ports(**noted.pop("ports")), **noted)
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{self._state} is not what dass stack writes: mend or remove it.") from None

    def note(self, state: State | None) -> None:
        """Write down what runs; None: nothing."""
        if state is None:
            self._state.unlink(missing_ok=True)
        else:
            write_json(self._state, asdict(state))

    def secret(self, name: str) -> str:
        """A password that only this user reads, made when it is first asked for."""
        path = self._private / name
        try:
            return read_private(path, f"the stack's {name}", _LONGEST_SECRET).decode().strip()
        except FileNotFoundError:
            value = secrets.token_urlsafe(24)
            write_private(path, value)
            return value

    def private(self, name: str, text: str) -> Path:
        """A file that only this user reads, with this text."""
        path = self._private / name
        write_private(path, text)
        return path

    def account(self, name: str) -> Path:
        """The file of an account's environment variables."""
        return self.accounts / f"{name}.env"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from starting and stopping meanwhile.

        Raises:
            InputError: another process is at it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"Another dass stack is starting or stopping what is in {self.root}. Wait for it."
                ) from None
            yield


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user reads, whole or not at all."""
    with complete_file(path) as temporary:
        with open(temporary, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        temporary.chmod(0o600)


def environment_file(values: Mapping[str, str]) -> str:
    """Variables as a shell and python-dotenv both read them. The values hold no quote, space or backslash."""
    return "".join(f"export {name}={json.dumps(value)[1:-1]}\n" for name, value in values.items())


def read_environment(path: Path) -> dict[str, str]:
    """What such a file holds."""
    lines = read_private(path, "an account's login", _LONGEST_SECRET).decode().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
