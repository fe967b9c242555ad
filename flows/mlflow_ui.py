"""MLflow's UI for `dass ui`: where its server is, or one of our own on loopback for as long as the command works."""

import os
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from dass.errors import InfrastructureError
from tasks.registry.experiment import experiment_page
from tasks.registry.ledger_run import find_model
from tasks.registry.place import artifacts, database
from tasks.registry.tracking import is_embedded, tracking, tracking_uri
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted, shown_address
from tasks.workspace.settings import load_settings
from tasks.workspace.tied import tied

_STARTUP_SECONDS = 120.0
_END_SECONDS = 5.0
_LINES_KEPT = 200


@dataclass(frozen=True)
class Pages:
    """What MLflow's UI shows of a workspace.

    Attributes:
        ui: its address.
        experiment: the page of the experiment's runs; None: there is no run yet.
        model: the page of the registered model; None: nothing was registered yet.
        is_own: whether the server is one of our own, gone with this command.
    """

    ui: str
    experiment: str | None
    model: str | None
    is_own: bool


@contextmanager
def mlflow_ui(ws: Workspace) -> Iterator[Pages | None]:
    """MLflow's UI on what the workspace recorded; None: it has recorded nothing yet.

    A server of our own listens on loopback only, asks for no password, and ends with this process in any case.

    Raises:
        InputError, TrackingError: MLflow refuses, or cannot be reached.
        InfrastructureError: a server of our own did not start.
    """
    if is_embedded(ws) and not database(ws).exists():
        yield None
        return
    register = load_settings(ws.params).register_
    with tracking(ws) as client:  # also makes the files of a moved workspace found
        experiment = client.get_experiment_by_name(register.experiment)
        has_model = find_model(client, register.model) is not None
    uri = tracking_uri(ws)
    is_own = not re.match(r"https?:|databricks", uri)
    with _server(ws, uri) if is_own else nullcontext(shown_address(uri).rstrip("/")) as ui:
        yield Pages(
            ui,
            None if experiment is None else experiment_page(ui, experiment.experiment_id),
            f"{ui}/#/models/{quote(register.model, safe='')}" if has_model else None,
            is_own,
        )


@contextmanager
def _server(ws: Workspace, uri: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        tied("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        env={**os.environ, **_environment(ws, uri)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _wait(process, address)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(ws: Workspace, uri: str) -> dict[str, str]:
    """The store is named in the environment, which only this user reads: its address may hold a password."""
    return {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": os.environ.get("MLFLOW_REGISTRY_URI") or uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts(ws).as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }


def _wait(process: "subprocess.Popen[bytes]", address: str) -> None:
    assert process.stderr is not None
    said: deque[bytes] = deque(maxlen=_LINES_KEPT)
    reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    reader.start()
    deadline = time.monotonic() + _STARTUP_SECONDS
    while not _answers(f"{address}/health"):
        if process.poll() is not None:
            reader.join(1.0)
            lines = [line for line in b"".join(said).decode(errors="replace").splitlines() if line.strip()]
            told = redacted(" ".join((lines or [f"status {process.returncode}"])[-1].split())).rstrip(".")
            raise InfrastructureError(f"MLflow's server did not start: {told[:300]}.")
        if time.monotonic() > deadline:
            raise InfrastructureError(f"MLflow's server did not start within {_STARTUP_SECONDS:.0f} s.")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def told(pages: Pages | None) -> dict[str, Any] | None:
    """As `dass ui --json` tells it."""
    return None if pages is None else {key: value for key, value in asdict(pages).items() if key != "is_own"}
