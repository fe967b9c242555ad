"""Work shared by several processes, from a process that only waits: `engine.processes`, `engine.nodes`.

torchrun starts the ranks; each is a program such as `tasks.pruning.rank`. They write what is finished into the run's
work folder, and whoever waits sees it appear there.

On one machine nothing of it listens to a network. By default torchrun does, on every interface, and unpickles what it
is sent there: its ranks meet in files of this user instead, and send each other tensors over the loopback. On several
they meet at an address, and exchange tensors over the interface that leads there (`tasks.pruning.nodes`).
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from dass.engine.ranks import Ranks, joined_ranks
from dass.errors import InfrastructureError, InputError, NumericalError
from tasks.pruning.nodes import Job, StageName, ask_for_nodes, split, wait_for_nodes, withdraw
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, validate_settings
from tasks.workspace.tied import end_with, tied

_PROGRAMS: dict[StageName, str] = {"prune": "tasks.pruning.rank", "recover": "tasks.recovery.rank"}
_LOOPBACK = "127.0.0.1"
_HERE = ("--nnodes", "1", "--local-addr", _LOOPBACK, "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file")
_POLL_SECONDS = 0.05
_END_SECONDS = 1.5
STARTER, MEETING = "DASSSTARTER", "DASSMEETING"

logger = logging.getLogger("dass")


class ProcessesError(InfrastructureError):
    """One of the processes died. What was finished stays."""


def is_rank() -> bool:
    """Whether this process was itself started by torchrun."""
    return "WORLD_SIZE" in os.environ


class JoinedProcesses:
    """`engine.ranks` ranks at work on a run. Started when the first thing is waited for that is not there."""

    def __init__(self, workspace: Workspace, settings: Settings, folder: Path, stage: StageName) -> None:
        """Nothing is started yet.

        Args:
            workspace, settings: what each rank is given.
            folder: the run's work folder.
            stage: what the ranks do.
        """
        self._workspace, self._settings, self._folder, self._stage = workspace, settings, folder, stage
        self._agent: subprocess.Popen[bytes] | None = None
        self._job: Job | None = None
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
            InputError, InfrastructureError: as `ask_for_nodes` and `wait_for_nodes`.
        """
        while not is_there():
            if self._agent is None:
                self._agent = self._start()
            status, elsewhere = self._agent.poll(), self._job and self._job.failure(self._workspace)
            if (status is not None or elsewhere) and not is_there():
                reason = elsewhere or f"(status {status}): {reason_in(self._log)}"
                raise ProcessesError(
                    f"{doing} with {self._settings.engine.ranks} processes stopped {where()} {reason}. "
                    f"What was finished is kept; run again to go on. Log: {self._log}"
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Stop the processes, if they still run."""
        if self._agent is not None:
            if sys.exc_info()[0] is not None:
                end(self._agent)
            self._agent.wait()
            shutil.rmtree(self._meeting, ignore_errors=True)
        if self._job is not None:
            withdraw(self._workspace, self._job)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = self._folder / "settings.json"  # what the flow has read: params.yaml may change meanwhile
        settings.write_text(self._settings.model_dump_json(by_alias=True), encoding="utf-8")
        if self._settings.engine.nodes > 1:
            self._job = ask_for_nodes(self._workspace, self._settings, self._stage, settings)
            logger.info("Waiting for %d more node(s); on each: dass join", self._job.nodes - 1)
            wait_for_nodes(self._workspace, self._job)
            return start_node(self._workspace, self._job, 0, self._log)
        shutil.rmtree(self._meeting, ignore_errors=True)  # of a run that was killed
        self._meeting.mkdir(mode=0o700)
        return _start(
            [*_HERE, "--rdzv-endpoint", str(self._meeting / "torchrun")],
            (_PROGRAMS[self._stage], str(self._workspace.root), str(settings)),
            self._settings.engine.processes,
            self._log,
            _LOOPBACK,
            {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", MEETING: str(self._meeting / "ranks")},
        )


def start_node(ws: Workspace, job: Job, number: int, log: Path) -> subprocess.Popen[bytes]:
    """Start this machine's ranks of a job that several nodes share; `number` is this node's."""
    return _start(
        [*job.rendezvous, "--node-rank", str(number)],
        (_PROGRAMS[job.stage], str(ws.root), str(ws.root / job.settings)),
        job.processes,
        log,
        split(job.endpoint)[0],
        {},
    )


def end(agent: subprocess.Popen[bytes]) -> None:
    """Stop a torchrun that was started here, and its ranks."""
    agent.terminate()
    try:
        agent.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:  # its processes end with it
        agent.kill()
        agent.wait()


def reason_in(log: Path) -> str:
    """What the ranks said before they stopped."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("dass: ") for line in lines if line.startswith("dass: ")]
    return (told or ["a process died"])[0]


def _start(
    options: list[str], program: tuple[str, ...], processes: int, log: Path, leads_to: str, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    with log.open("wb") as file:
        return subprocess.Popen(
            [*tied("torch.distributed.run", *options, "--nproc-per-node", str(processes), "-m"), *program],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us
            # The ranks, too, take no module from the folder they are started in: a user's tasks.py may lie there.
            env={
                "OMP_NUM_THREADS": str(threads),
                **_interface(leads_to),
                **os.environ,
                **environment,
                "PYTHONSAFEPATH": "1",
                STARTER: str(os.getpid()),
            },
        )


def work_as_rank(root: str, settings_file: str, work: Callable[[Workspace, Settings, Ranks], None]) -> None:
    """What a rank's program does: its share of the work, until done or until torchrun or whoever started it is gone."""
    end_with(int(os.environ[STARTER]))
    end_with(os.getppid())
    settings = validate_settings(json.loads(Path(settings_file).read_text(encoding="utf-8")), settings_file)
    try:
        meeting = os.environ.get(MEETING)
        with joined_ranks(Path(meeting) if meeting else None) as ranks:
            work(Workspace(Path(root)), settings, ranks)
    except (InputError, NumericalError) as error:
        sys.exit(f"dass: {error}")


def _interface(host: str) -> dict[str, str]:
    """The network interface that leads to a machine, as gloo and nccl want to be told; to this one's loopback: lo."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(address)  # sends nothing
        mine = way.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == mine for each in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}  # they look for one themselves
