"""A `dass run` that a fault meets in the middle of its layers, and what must hold behind every fault.

One message names the fault. No finished layer is done again, no version is half there, nothing is left over, and the
next run ends with one more version, which is proved.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Generator, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tasks.promotion.verification import verify_named
from tasks.registry.ledger import Ledger
from tasks.registry.place import database
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands
from tests.test_flows.test_compress import digests, wait_for

MODEL = "tiny-dass"
_STORE = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
SECONDS = 600.0
"""A run may take so long: other tests work on this machine, too."""


@dataclass
class Victim:
    """A workspace whose run is met by a fault.

    Attributes:
        commands: who runs it, with logins.
        ws: where.
        options: of its `dass run`.
        undisturbed: digests of the result of a run that nothing met; None: the proof prunes again instead.
    """

    commands: Commands
    ws: Workspace
    options: tuple[str, ...] = ()
    undisturbed: dict[str, str] | None = None
    _layers: dict[Path, int] = field(default_factory=dict)
    _versions: list[str] | None = None

    @contextmanager
    def pruning(self, **env: str) -> Generator[subprocess.Popen[str]]:
        """The run, when it has finished its first layer."""
        self._versions = self._registered()
        known = set(self.ws.work.glob("*/layer_000.safetensors"))
        process = self.commands.start(self.ws, "dass", "run", *self.options, **env)
        try:
            wait_for(
                lambda: process.poll() is not None or bool(set(self.ws.work.glob("*/layer_000.safetensors")) - known),
                seconds=SECONDS,
            )
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ends(self, process: "subprocess.Popen[str]", *named: str, status: int = 3) -> None:
        """The run ends by itself, with one message that names the fault; note what it has finished."""
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == status, errors
        check_message(errors, *named)
        self.note_layers()

    def fails(self, *named: str, status: int = 3, **env: str) -> None:
        """A run from beginning to end that does the same."""
        if self._versions is None:
            self._versions = self._registered()
        done = self.commands(self.ws, "dass", "run", *self.options, status=status, **env)
        check_message(done.stderr, *named)
        self.note_layers()

    def note_layers(self) -> None:
        """These layers are finished, and must not be done again."""
        self._layers = layers_of(self.ws)
        assert self._layers, "no layer was finished before the fault"

    def start_from_here(self) -> None:
        """What there is now was there before the fault."""
        self._versions = self._registered()

    def kept(self) -> Set[tuple[Path, int]]:
        """The layers that were noted, and when each was written."""
        return self._layers.items()

    def goes_on(self, **env: str) -> dict[str, Any]:
        """The fault is over: the next run succeeds, and everything holds.

        Returns:
            What it printed.
        """
        assert self._registered() == self._versions, "a version of a run that failed"
        done = self.commands(self.ws, "dass", "run", "--json", *self.options, status=0, **env)
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["created"]
        self.holds(answer["version"])
        return answer

    def holds(self, version: str) -> None:
        """There is this one version more than before the fault, it is proved, and nothing else is left."""
        kept = layers_of(self.ws)
        assert {path: kept.get(path) for path in self._layers} == self._layers, "a finished layer was done again"
        assert self._registered() == [*(self._versions or []), version]
        for folder in (self.ws.root, self.ws.registry):
            assert list((folder / ".dass" / "registering").glob("*.json")) == []
        with self._client() as client:
            experiment = client.get_experiment_by_name("dass")
            unended = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
            assert [run.info.run_name for run in unended] == []
            if self.undisturbed is not None:
                proof = verify_named(self.ws, MODEL, version)
                assert proof.as_json()["passed"], proof
                assert digests(self.ws) == self.undisturbed
                return
        self.commands(self.ws, "dass", "verify", version, "--replay")  # with as many threads as the run had

    def _registered(self) -> list[str]:
        """The versions, oldest first. Every one of them must be ready, and in the ledger."""
        if "MLFLOW_TRACKING_URI" not in self.commands.environment and not database(self.ws).exists():
            return []
        with self._client() as client:
            found = sorted(client.search_model_versions(f"name = '{MODEL}'"), key=lambda made: int(made.version))
            if not found:
                return []
            chain = Ledger.open(client, MODEL, self.ws).chain(beginning=True)
            for made in found:
                assert made.status == "READY"
                assert chain.registered(str(made.version)) is not None, f"version {made.version} is half registered"
            return [str(made.version) for made in found]

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """MLflow, as the commands speak to it."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _STORE:
                value = self.commands.environment.get(name)
                patch.setenv(name, value) if value else patch.delenv(name, raising=False)
            with tracking(self.ws) as client:
                yield client


def layers_of(ws: Workspace) -> dict[Path, int]:
    """When each finished layer was written, in ns."""
    return {path: path.stat().st_mtime_ns for path in sorted(ws.work.glob("*/layer_*.safetensors"))}


def check_message(errors: str, *named: str) -> None:
    """One message, and it names the fault."""
    told = re.findall(r"(?<!-)dass: .*", errors)  # Prefect's own words before it may have no line's end
    assert len(told) == 1, errors
    assert [name for name in named if name not in told[0]] == [], told[0]
    assert "Traceback" not in errors
