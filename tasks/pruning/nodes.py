"""Several machines that work on one run: `engine.nodes`. They share the workspace's folder and meet at an address.

`dass run` asks for the others in a file of the workspace; `dass join` on each of them answers beside it, with the next
number and with what it would compute with. Where that differs, both ends refuse.

One disk, because one process writes layers, statistics and choices, and all of them read those.
"""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dass.errors import InfrastructureError, InputError
from dass.files import digest_of, read_json, sha256_file, write_json
from tasks.versioning.code import code_digest
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Engine, Settings

if TYPE_CHECKING:
    import torch

    from dass.engine.ranks import Ranks

StageName = Literal["prune", "recover"]
Facts = dict[str, str]

_POLL_SECONDS = 0.2
_JOB = "job.json"


@dataclass(frozen=True)
class Job:
    """What a run asks of the other nodes.

    Attributes:
        id: of this meeting; torchrun's --rdzv-id.
        stage: which work.
        settings: the file with the run's settings, seen from the workspace.
        host: the first node.
        nodes, processes, endpoint, timeout: as in section `engine`.
        facts: what the first node computes with.
    """

    id: str
    stage: StageName
    settings: str
    host: str
    nodes: int
    processes: int
    endpoint: str
    timeout: int
    facts: Facts

    def folder(self, ws: Workspace) -> Path:
        """Where its nodes answer; gone once the work is over."""
        return _folder(ws) / self.id

    def stands(self, ws: Workspace) -> bool:
        """Whether it is still asked for."""
        return (self.folder(ws) / _JOB).exists()

    def failure(self, ws: Workspace) -> str | None:
        """What a node said before it gave up."""
        for path in self.folder(ws).glob("failed_*"):
            return path.read_text(encoding="utf-8")
        return None

    @property
    def rendezvous(self) -> tuple[str, ...]:
        """torchrun's options but for --node-rank. Static: torchrun's c10d one unpickles what comes to the port."""
        return (
            *("--nnodes", str(self.nodes), "--rdzv-backend", "static", "--rdzv-endpoint", self.endpoint),
            *("--rdzv-id", self.id, "--rdzv-conf", f"timeout={self.timeout}"),
        )


def facts_of(ws: Workspace, settings: Settings, stage: StageName) -> Facts:
    """What a node computes with; where one of these differs, another result could come out."""
    lock = Workspace(ws.root).lock_file
    return {
        "code": code_digest(stage)[:16],
        **{package: version(package) for package in ("torch", "transformers", "safetensors")},
        "dass.lock.json": sha256_file(lock)[:16] if lock.exists() else "missing",
        "settings": digest_of(settings.model_dump(mode="json", by_alias=True))[:16],
    }


def check_endpoint(engine: Engine) -> None:
    """Refuse, before any work, an address that the other nodes could not meet this machine at.

    Raises:
        InputError: it is not this machine's, or its port is in use.
    """
    if engine.nodes == 1 or engine.rdzv_endpoint is None:
        return
    told = f"engine.rdzv_endpoint is {engine.rdzv_endpoint}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(*split(engine.rdzv_endpoint), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(f"{told}: no machine of that name is known here ({error.strerror}).") from None
    with socket.socket(family, kind) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(address)
        except OSError as error:
            raise InputError(
                f"{told}: {error.strerror} on {socket.gethostname()}. Expected an address of this machine, as the "
                "other nodes reach it, and a port that nothing uses."
            ) from None


def split(endpoint: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def ask_for_nodes(ws: Workspace, settings: Settings, stage: StageName, settings_file: Path) -> Job:
    """Ask for the other nodes. Whoever holds the workspace may; what an earlier run asked is withdrawn.

    Raises:
        InputError: as `check_endpoint`.
    """
    engine = settings.engine
    check_endpoint(engine)
    assert engine.rdzv_endpoint is not None
    shutil.rmtree(_folder(ws), ignore_errors=True)  # of a run that was killed
    job = Job(
        *(secrets.token_hex(8), stage, str(settings_file.relative_to(ws.root)), socket.gethostname()),
        *(engine.nodes, engine.processes, engine.rdzv_endpoint, engine.rdzv_timeout),
        facts_of(ws, settings, stage),
    )
    job.folder(ws).mkdir(parents=True)
    write_json(job.folder(ws) / _JOB, asdict(job))
    return job


def wait_for_nodes(ws: Workspace, job: Job) -> None:
    """Until every other node has answered.

    Raises:
        InputError: one computes with something else.
        InfrastructureError: not all came in time.
    """
    since, here = time.monotonic(), job.folder(ws)
    while True:
        others = [read_json(path) for path in sorted(here.glob("node_*"))]
        for other in others:
            check_alike(job.host, job.facts, other["host"], other["facts"])
        if len(others) >= job.nodes - 1:
            return
        if time.monotonic() - since > job.timeout:
            raise InfrastructureError(
                f"engine.nodes is {job.nodes}, and {1 + len(others)} had come after {job.timeout} s "
                f"(engine.rdzv_timeout). Run on each of the others, on the disk that holds {ws.root}: dass join"
            )
        time.sleep(_POLL_SECONDS)


def withdraw(ws: Workspace, job: Job) -> None:
    """The work is over, or given up."""
    shutil.rmtree(job.folder(ws), ignore_errors=True)


def asked_for(ws: Workspace) -> Job | None:
    """What is asked of other nodes now.

    Raises:
        InputError: another version of dass asks.
    """
    for path in _folder(ws).glob(f"*/{_JOB}"):
        with suppress(OSError):  # withdrawn meanwhile
            try:
                return Job(**read_json(path))
            except TypeError:
                raise InputError(f"{path} is another version's. Bring this node to the first one's code.") from None
    return None


def answer(ws: Workspace, job: Job, facts: Facts) -> int:
    """Take the next number.

    Raises:
        InputError: this node computes with something else than the first, which refuses, too; or all are there.
    """
    here, host = job.folder(ws), socket.gethostname()
    mine = here / f"answer_{host}_{os.getpid()}"
    write_json(mine, {"host": host, "facts": facts})
    for number in range(1, job.nodes):
        with suppress(FileExistsError):
            os.link(mine, here / f"node_{number}")  # complete, and one node's only
            check_alike(job.host, job.facts, host, facts)
            return number
    raise InputError(f"All {job.nodes} nodes of the run on {job.host} are there already (engine.nodes).")


def note_failure(ws: Workspace, job: Job, number: int, why: str) -> None:
    """Tell the first node, which would wait otherwise."""
    with suppress(OSError):
        (job.folder(ws) / f"failed_{number}").write_text(
            f"on {socket.gethostname()}: {why.rstrip('.')}", encoding="utf-8"
        )


def check_alike(first: str, its: Mapping[str, str], other: str, others: Mapping[str, str]) -> None:
    """Raises InputError: two nodes compute with something that differs; the message names both."""
    for name, value in its.items():
        if others.get(name) != value:
            raise InputError(
                f"Nodes differ in {name}: node 0 ({first}) has {value}, and {other} has {others.get(name, 'none')}. "
                "Bring both to the same."
            )


def check_nodes(ranks: "Ranks", device: "torch.device", ws: Workspace, settings: Settings, stage: StageName) -> None:
    """By the processes themselves, whoever started them: nodes are alike, and share the workspace's folder.

    Raises:
        InputError: they are not, or do not.
    """
    if ranks.nodes == 1:
        return
    host, token = socket.gethostname(), secrets.token_hex(8)
    said = ranks.told(json.dumps({"host": host, "token": token, "facts": facts_of(ws, settings, stage)}), device)
    first, *others = map(json.loads, said)
    for other in others:
        check_alike(first["host"], first["facts"], other["host"], other["facts"])
    mark = ws.private / f"seen_by_all_{first['token']}"
    if ranks.is_first:
        ws.private.mkdir(exist_ok=True)
        mark.touch()
    ranks.wait()
    blind = [each for each in ranks.told("" if mark.exists() else host, device) if each]
    if ranks.is_first:
        mark.unlink()
    if blind:
        raise InputError(
            f"{blind[0]} does not see what {first['host']} has just written into {ws.private}. One node writes layers "
            "and statistics that all read: expected one disk for all, where new files are seen at once (of NFS mounts "
            "with lookupcache=positive)."
        )


def _folder(ws: Workspace) -> Path:
    return ws.private / "nodes"
