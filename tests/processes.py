"""Work in real processes that start quickly and can be killed: forked from one that has imported MLflow.

Not forked from the test itself: a database's connections do not survive that.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tasks.promotion import champion
from tasks.registry import keys, publishing, registration
from tasks.registry.ledger import Ledger
from tasks.registry.tracking import tracking
from tasks.versioning import git
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.bare_versions import manifest_of

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "pytest",  # the main module, which every process imports
        "mlflow",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "tests.processes",
    ]
)


class DyingClient:
    """An MLflow client whose process is killed right before its n-th call."""

    def __init__(self, client: Any, dies_before: int) -> None:
        self._client = client
        self._left = dies_before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **options)

        return call


def start(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def at_once(work: Callable[..., None], *each: tuple[Any, ...]) -> None:
    """Run `work` once for each of the arguments, all at the same moment; fails when one fails."""
    barrier = _CONTEXT.Barrier(len(each))
    processes = [start(_together, barrier, work, arguments) for arguments in each]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def _together(barrier: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    barrier.wait(60)
    work(*arguments)


def _client_of(uri: str, workspace: Workspace) -> Any:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return tracking(workspace)


def write_entries(uri: str, workspace: Workspace, model: str, writer: str, count: int) -> None:
    with _client_of(uri, workspace) as client:
        ledger = Ledger.open(client, model)
        for number in range(count):
            ledger.record("gate", "1", manifest_of("1"), {"writer": writer, "number": number})


def open_ledger(uri: str, workspace: Workspace, model: str) -> None:
    """Record an entry in the ledger of a model that has none, or does not exist, yet."""
    with _client_of(uri, workspace) as client:
        ledger, _ = Ledger.start(client, model)
        ledger.record("gate", "1", manifest_of("1"), {"process": os.getpid()})


def promote(uri: str, workspace: Workspace, model: str, version: str, times: int = 1, dies_before: int = 0) -> None:
    with _client_of(uri, workspace) as real:
        client = DyingClient(real, dies_before)
        for _ in range(times):
            ledger = Ledger.open(client, model)
            champion.crown(client, ledger, version, manifest_of(version), "promoted", lambda _: {"reason": None})


def register_result(workspace: Workspace, settings: Settings, provenance: dict[str, Any], dies_before: int) -> None:
    """Register in the workspace's own store, killed before a call of MLflow."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # this process was forked from one that another test may have started

    @contextmanager
    def dying(ws: Workspace) -> Iterator[Any]:
        with tracking(ws) as client:
            yield DyingClient(client, dies_before)

    setattr(registration, "tracking", dying)  # noqa: B010  (in this process, which is for one call)
    registration.register(workspace, settings, provenance)


def rotate_key(uri: str, workspace: Workspace, model: str, key_file: str, dies_before: int) -> None:
    """`dass keys rotate`, killed before a call of MLflow."""
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "DASS_SIGNING_KEY": key_file}

    @contextmanager
    def dying(ws: Workspace) -> Iterator[Any]:
        with tracking(ws) as client:
            yield DyingClient(client, dies_before)

    setattr(keys, "tracking", dying)  # noqa: B010  (in this process, which is for one call)
    keys.rotate(workspace, model)


def roll_back(uri: str, workspace: Workspace, model: str, to: str | None, dies_before: int = 0) -> None:
    with _client_of(uri, workspace) as real:
        champion.roll_back(DyingClient(real, dies_before), model, to, "it was slow")


def anchor_head(uri: str, workspace: Workspace, model: str, dies_before: int) -> None:
    """Put a ledger's head into the workspace's git repository, killed before a call of git that writes."""
    ask, left = git._ask, dies_before

    def dying(folder: Path, *arguments: str, **options: Any) -> Any:
        nonlocal left
        if {"hash-object", "mktree", "commit-tree", "update-ref", "push"} & set(arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return ask(folder, *arguments, **options)

    setattr(git, "_ask", dying)  # noqa: B010  (in this process, which is for one call)
    with _client_of(uri, workspace) as client:
        publishing.anchor_ledger(workspace, client, model)
