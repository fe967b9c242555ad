"""Pruning by several processes of this machine, from a process that only waits: `engine.processes`.

torchrun starts the ranks; each is the program `tasks.pruning.rank`. They write finished layers into the run's work
folder, and whoever waits sees them appear there.

Nothing of it listens to a network. By default torchrun does, on every interface, and unpickles what it is sent there:
its ranks meet in files of this user instead, and send each other tensors over the loopback.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from dass.engine.choice import Choice
from dass.engine.run import CheckpointRun, LayerRecord, read_report
from dass.errors import InfrastructureError
from dass.files import read_json
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tasks.workspace.tied import tied

_TORCHRUN = ("torch.distributed.run", "--nnodes", "1", "--local-addr", "127.0.0.1")
_IN_A_FILE = ("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint")
_POLL_SECONDS = 0.05
_END_SECONDS = 1.5
STARTER, MEETING = "DASSSTARTER", "DASSMEETING"


class ProcessesError(InfrastructureError):
    """A pruning process died. Finished layers stay."""


def is_rank() -> bool:
    """Whether this process was itself started by torchrun."""
    return "WORLD_SIZE" in os.environ


class JoinedProcesses:
    """`engine.processes` ranks at work on a run. Started with the first layer that is asked for and not finished."""

    def __init__(self, workspace: Workspace, settings: Settings, run: CheckpointRun) -> None:
        self._workspace, self._settings, self._run = workspace, settings, run
        self._job: subprocess.Popen[bytes] | None = None
        self._log = run.folder / "processes.log"
        self._meeting = run.folder / "meeting"

    def layer(self, index: int) -> LayerRecord:
        """Wait until a layer is finished.

        Raises:
            ProcessesError: a process died.
        """
        path = self._run.mask_file(index)
        self._wait_for(path, f"in layer {index}")
        return LayerRecord(read_report(path), resumed=index < self._run.finished)

    def choice(self) -> Choice:
        """Wait until `auto` has chosen.

        Raises:
            ProcessesError: a process died.
        """
        self._wait_for(self._run.choice_file, "while auto was choosing")
        return Choice.of(read_json(self._run.choice_file))

    def _wait_for(self, path: Path, where: str) -> None:
        if not path.exists() and self._job is None:
            self._job = self._start()
        while not path.exists():
            assert self._job is not None
            status = self._job.poll()
            if status is not None and not path.exists():
                processes = self._settings.engine.processes
                raise ProcessesError(
                    f"Pruning with {processes} processes stopped {where} (status {status}): {self._reason()}. "
                    f"Finished layers are kept; run again to go on. Log: {self._log}"
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Stop the processes, if they still run."""
        if self._job is None:
            return
        if sys.exc_info()[0] is not None:
            self._job.terminate()
            try:
                self._job.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:  # its processes end with it
                self._job.kill()
        self._job.wait()
        shutil.rmtree(self._meeting, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        processes = self._settings.engine.processes
        settings = self._run.folder / "settings.json"  # what the flow has read: params.yaml may change meanwhile
        settings.write_text(self._settings.model_dump_json(by_alias=True), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // processes)
        shutil.rmtree(self._meeting, ignore_errors=True)  # of a run that was killed
        self._meeting.mkdir(mode=0o700)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    *tied(*_TORCHRUN, *_IN_A_FILE, str(self._meeting / "torchrun")),
                    *("--nproc-per-node", str(processes), "-m"),
                    "tasks.pruning.rank",
                    str(self._workspace.root),
                    str(settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us
                # The ranks, too, take no module from the folder they are started in: a user's tasks.py may lie there.
                env={
                    "OMP_NUM_THREADS": str(threads),
                    **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback()),
                    **os.environ,
                    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                    MEETING: str(self._meeting / "ranks"),
                    "PYTHONSAFEPATH": "1",
                    STARTER: str(os.getpid()),
                },
            )

    def _reason(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("dass: ") for line in lines if line.startswith("dass: ")]
        return (told or ["a process died"])[0]


def _loopback() -> str:
    """The name of the interface that leads to this machine only: lo, or lo0."""
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, addresses in interfaces if any(a.address == "127.0.0.1" for a in addresses))
