"""Work shared by several processes of this machine, from a process that only waits: `engine.processes`.

torchrun starts the ranks; each is a program such as `tasks.pruning.rank`. They write what is finished into the run's
work folder, and whoever waits sees it appear there.

Nothing of it listens to a network. By default torchrun does, on every interface, and unpickles what it is sent there:
its ranks meet in files of this user instead, and send each other tensors over the loopback.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from dass.engine.ranks import Ranks, joined_ranks
from dass.errors import InfrastructureError, InputError, NumericalError
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, validate_settings
from tasks.workspace.tied import end_with, tied

_TORCHRUN = ("torch.distributed.run", "--nnodes", "1", "--local-addr", "127.0.0.1")
_IN_A_FILE = ("--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint")
_POLL_SECONDS = 0.05
_END_SECONDS = 1.5
STARTER, MEETING = "DASSSTARTER", "DASSMEETING"


class ProcessesError(InfrastructureError):
    """One of the processes died. What was finished stays."""


def is_rank() -> bool:
    """Whether this process was itself started by torchrun."""
    return "WORLD_SIZE" in os.environ


class JoinedProcesses:
    """`engine.processes` ranks at work on a run. Started when the first thing is waited for that is not there."""

    def __init__(self, workspace: Workspace, settings: Settings, folder: Path, program: str) -> None:
        """Nothing is started yet.

        Args:
            workspace, settings: what each rank is given.
            folder: the run's work folder.
            program: the module that each rank runs; it calls `work_as_rank`.
        """
        self._workspace, self._settings, self._folder, self._program = workspace, settings, folder, program
        self._job: subprocess.Popen[bytes] | None = None
        self._log = folder / "processes.log"
        self._meeting = folder / "meeting"

    def wait_for(self, is_there: Callable[[], bool], doing: str, where: Callable[[], str]) -> None:
        """Wait until something is finished.

        Args:
            is_there: whether it is.
            doing: what the processes do, for the message: "Pruning".
            where: says where they are: "in layer 3".

        Raises:
            ProcessesError: a process died.
        """
        while not is_there():
            if self._job is None:
                self._job = self._start()
            status = self._job.poll()
            if status is not None and not is_there():
                processes = self._settings.engine.processes
                raise ProcessesError(
                    f"{doing} with {processes} processes stopped {where()} (status {status}): {self._reason()}. "
                    f"What was finished is kept; run again to go on. Log: {self._log}"
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
        settings = self._folder / "settings.json"  # what the flow has read: params.yaml may change meanwhile
        settings.write_text(self._settings.model_dump_json(by_alias=True), encoding="utf-8")
        threads = max(1, (os.cpu_count() or 1) // processes)
        shutil.rmtree(self._meeting, ignore_errors=True)  # of a run that was killed
        self._meeting.mkdir(mode=0o700)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    *tied(*_TORCHRUN, *_IN_A_FILE, str(self._meeting / "torchrun")),
                    *("--nproc-per-node", str(processes), "-m"),
                    self._program,
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


def work_as_rank(root: str, settings_file: str, work: Callable[[Workspace, Settings, Ranks], None]) -> None:
    """What a rank's program does: its share of the work, until done or until torchrun or whoever started it is gone."""
    end_with(int(os.environ[STARTER]))
    end_with(os.getppid())
    settings = validate_settings(json.loads(Path(settings_file).read_text(encoding="utf-8")), settings_file)
    try:
        with joined_ranks(Path(os.environ[MEETING])) as ranks:
            work(Workspace(Path(root)), settings, ranks)
    except (InputError, NumericalError) as error:
        sys.exit(f"dass: {error}")


def _loopback() -> str:
    """The name of the interface that leads to this machine only: lo, or lo0."""
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, addresses in interfaces if any(a.address == "127.0.0.1" for a in addresses))
