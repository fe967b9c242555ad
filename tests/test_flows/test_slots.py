"""Slots of runs that are gone are freed at a real server, and of no others."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling, Pending, Running

from flows.slots import NewWorker, free_slots
from flows.status import status
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import dead_flow_runs, flow_run_file
from tests.beside import beside
from tests.test_flows.conftest import Commands

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WORKS = """
import sys
from pathlib import Path
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import take_lease
from tasks.workspace.lock import flow_run_file
path = flow_run_file(Workspace(Path(sys.argv[1])), sys.argv[2])
path.parent.mkdir(parents=True, exist_ok=True)
take_lease(path, "a run").note(flow="compress", run="a night's", count="1")
print("works", flush=True)
sys.stdin.readline()
"""


@flow
def nothing(workspace: str) -> None:
    """Never begun."""


@dataclass(frozen=True)
class Server:
    """A pool and a deployment of one slot at the shared server."""

    client: "SyncPrefectClient"
    ws: Workspace
    pool: str
    deployment: UUID

    def begun(self, *, is_pending: bool = False, workspace: Path | None = None) -> str:
        """A run that has taken the slot."""
        asked = {"workspace": str(workspace or self.ws.root)}
        run = self.client.create_flow_run_from_deployment(self.deployment, parameters=asked)
        assert self.client.set_flow_run_state(run.id, Pending()).status == "ACCEPT"
        if not is_pending:
            assert self.client.set_flow_run_state(run.id, Running()).status == "ACCEPT"
        return str(run.id)

    def state(self, run: str) -> str:
        found = self.client.read_flow_run(UUID(run)).state
        assert found is not None
        return found.type.value

    def message(self, run: str) -> str:
        found = self.client.read_flow_run(UUID(run)).state
        return str(found and found.message)

    @property
    def taken(self) -> int:
        """Slots of the deployment."""
        limit = self.client.read_deployment(self.deployment).global_concurrency_limit
        assert limit is not None
        return limit.active_slots

    def heard_of(self, worker: str) -> None:
        there = {"work_pool_name": self.pool}
        self.client.request(
            "POST", "/work_pools/{work_pool_name}/workers/heartbeat", path_params=there, json={"name": worker}
        )


@pytest.fixture
def server(commands: Commands, tmp_path: Path) -> Iterator[Server]:
    ws = Workspace(tmp_path)
    ws.private.mkdir()
    with commands.prefect() as client:
        pool = f"pool-{uuid4()}"
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        made = client.create_deployment(
            client.create_flow(nothing), name=pool, work_pool_name=pool, concurrency_limit=1, parameters={}
        )
        yield Server(client, ws, pool, made)


def working(ws: Workspace, run: str, **env: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A process that holds the lease of a run."""
    return beside(WORKS, str(ws.root), run, says="works", **env)


def killed(ws: Workspace, run: str) -> None:
    with working(ws, run):
        pass


def test_a_dead_run_is_crashed_its_slot_is_free_and_its_lease_is_cleared(server: Server) -> None:
    run = server.begun()
    waits = server.client.create_flow_run_from_deployment(server.deployment, parameters={"workspace": "/another"})
    assert server.client.set_flow_run_state(waits.id, Pending()).status != "ACCEPT"
    killed(server.ws, run)
    assert list(dead_flow_runs(server.ws)) == [run]
    (told,) = free_slots(server.ws)
    assert told == server.client.read_flow_run(UUID(run)).name
    assert (server.state(run), server.taken) == ("CRASHED", 0)
    assert server.message(run).startswith("Its process was killed. Finished layers are kept")
    assert server.client.set_flow_run_state(waits.id, Pending()).status == "ACCEPT"
    assert not flow_run_file(server.ws, run).exists()
    assert free_slots(server.ws) == []


def test_one_that_was_being_cancelled_is_crashed_too(server: Server) -> None:
    run = server.begun()
    server.client.set_flow_run_state(UUID(run), Cancelling(), force=True)
    killed(server.ws, run)
    assert len(free_slots(server.ws)) == 1
    assert (server.state(run), server.taken) == ("CRASHED", 0)


def test_one_that_works_or_only_sleeps_is_left_alone(server: Server) -> None:
    run = server.begun()
    with working(server.ws, run, DASS_LEASE="1") as process:
        assert free_slots(server.ws) == []
        subprocess.run(["kill", "-STOP", str(process.pid)], check=True)
        time.sleep(1.2)  # its heart has stood still for longer than it may
        assert free_slots(server.ws, NewWorker("dass@here", server.pool)) == []
    assert server.state(run) == "RUNNING"


def on_another_machine(server: Server) -> tuple[str, Path]:
    """A run whose process is gone, and its lease, which this machine cannot know."""
    run = server.begun()
    killed(server.ws, run)
    lease = flow_run_file(server.ws, run)
    there = {"machine": "another", "boot": "another", "host": "gpu-7", "silence": 1.0}
    lease.write_text(json.dumps({**json.loads(lease.read_text()), **there}))
    return run, lease


def test_a_silent_one_of_another_machine_is_crashed_by_a_new_worker_alone(server: Server) -> None:
    run, lease = on_another_machine(server)
    assert free_slots(server.ws) == []
    assert (server.state(run), lease.exists()) == ("RUNNING", True)
    assert len(free_slots(server.ws, NewWorker("dass@here", server.pool))) == 1
    assert (server.state(run), server.taken, lease.exists()) == ("CRASHED", 0, False)
    assert server.message(run).startswith("Nothing has been heard of gpu-7 for 1 s")


def test_one_of_another_machine_that_is_heard_of_is_left_alone(server: Server) -> None:
    run, lease = on_another_machine(server)
    is_over = threading.Event()

    def beat() -> None:
        owner = json.loads(lease.read_text())
        while not is_over.wait(0.2):
            owner["beats"] += 1
            lease.write_text(json.dumps(owner))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        assert free_slots(server.ws, NewWorker("dass@here", server.pool)) == []
    finally:
        is_over.set()
        heart.join()
    assert (server.state(run), lease.exists()) == ("RUNNING", True)


def test_one_of_another_workspace_is_left_alone(server: Server, tmp_path: Path) -> None:
    run = server.begun(workspace=tmp_path / "another")
    killed(server.ws, run)
    assert free_slots(server.ws, NewWorker("dass@here", server.pool)) == []
    assert server.state(run) == "RUNNING"


def test_one_that_is_begun_anew_is_not_taken_for_its_last_time(server: Server) -> None:
    run = server.begun()
    killed(server.ws, run)
    server.client.set_flow_run_state(UUID(run), Pending(), force=True)
    server.client.set_flow_run_state(UUID(run), Running(), force=True)
    assert free_slots(server.ws) == []
    assert server.state(run) == "RUNNING"


@pytest.mark.parametrize("is_pending", [True, False])
def test_one_without_a_lease_is_its_workers_and_only_the_next_worker_knows(server: Server, is_pending: bool) -> None:
    run = server.begun(is_pending=is_pending)
    server.heard_of("dass@here")
    assert free_slots(server.ws) == []
    assert free_slots(server.ws, NewWorker("dass@here", "another pool")) == []
    assert len(free_slots(server.ws, NewWorker("dass@here", server.pool))) == 1
    assert (server.state(run), server.taken) == ("CRASHED", 0)
    assert server.message(run).startswith("Its worker was killed before it began.")


def test_one_without_a_lease_that_another_worker_may_have_is_left_alone(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    run = server.begun()
    server.heard_of("dass@there")
    assert free_slots(server.ws, NewWorker("dass@here", server.pool)) == []
    assert server.state(run) == "RUNNING"
    assert "worker dass@there may have it" in caplog.text


def test_one_whose_process_is_still_starting_is_left_alone(server: Server) -> None:
    run = server.begun(is_pending=True)
    starting = [sys.executable, "-c", "import sys; sys.stdin.readline()"]
    with subprocess.Popen(starting, stdin=subprocess.PIPE, env={**os.environ, "PREFECT__FLOW_RUN_ID": run}) as process:
        assert free_slots(server.ws, NewWorker("dass@here", server.pool)) == []
        process.kill()
    assert server.state(run) == "PENDING"


def test_status_shows_a_dead_run_of_a_deployment_as_stuck(finished: Workspace) -> None:
    killed(finished, run := str(uuid4()))
    (stuck,) = [each for each in status(finished)["stuck"] if each["what"] == "flow run"]
    assert "a night's (compress) of a deployment was lost (its process was killed)" in stuck["told"]
    assert "dass stack up" in stuck["next"]
    assert flow_run_file(finished, run).exists()
