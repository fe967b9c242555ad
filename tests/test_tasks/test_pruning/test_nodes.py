"""Nodes that meet for a run: what is refused, at which end, and that two make the masks of one."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dass.errors import InfrastructureError, InputError
from tasks.pruning.join import _wait_for_address as wait_for_address
from tasks.pruning.join import join
from tasks.pruning.nodes import Job, answer, ask_for_nodes, asked_for, check_endpoint, facts_of, split, wait_for_nodes
from tasks.pruning.stages import prune
from tasks.versioning.checkout import checked_out
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
from tasks.workspace.settings import Engine, Settings
from tests.test_tasks.test_pruning.test_run import bytes_of, make_workspace, settings, with_engine

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def engine(**changes: object) -> dict[str, object]:
    at = f"127.0.0.1:{free_port()}"
    return {"device": "cpu", "batch_tokens": 16, "nodes": 2, "rdzv_endpoint": at, "rdzv_timeout": 1, **changes}


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Workspace, Settings, Job]:
    """A workspace in whose name a second node is asked for."""
    ws, wanted = Workspace(tmp_path), with_engine(engine())
    (ws.private / "work").mkdir(parents=True)
    return ws, wanted, ask_for_nodes(ws, wanted, "prune", ws.private / "work" / "settings.json")


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("192.0.2.1:29500", "rdzv_endpoint is 192.0.2.1:29500: .*Expected an address of this machine"),
        ("no-such-machine.invalid:29500", "rdzv_endpoint is no-such-machine.invalid:29500: no machine of that name"),
    ],
)
def test_an_address_that_is_not_this_machine_s_is_refused_before_any_work(endpoint: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_endpoint(Engine.model_validate(engine(rdzv_endpoint=endpoint)))
    check_endpoint(Engine.model_validate(engine(rdzv_endpoint=endpoint, nodes=1)))  # not asked for


def test_a_port_in_use_is_refused() -> None:
    wanted = Engine.model_validate(engine())
    check_endpoint(wanted)
    told = r"rdzv_endpoint is 127\.0\.0\.1:\d+: Address already in use"
    with socket.create_server(split(str(wanted.rdzv_endpoint))), pytest.raises(InputError, match=told):
        check_endpoint(wanted)


def test_nodes_get_the_numbers_behind_the_first_and_no_more_than_are_asked_for(
    asked: tuple[Workspace, Settings, Job],
) -> None:
    ws, wanted, job = asked
    assert asked_for(ws) == job
    facts = facts_of(ws, wanted, "prune")
    assert answer(ws, job, facts) == 1
    wait_for_nodes(ws, job)
    with pytest.raises(InputError, match="All 2 nodes of the run .* are there already"):
        answer(ws, job, facts)
    later = ask_for_nodes(ws, wanted, "recover", ws.private / "work" / "settings.json")
    assert asked_for(ws) == later  # what a killed run asked for is withdrawn
    assert not job.stands(ws)


@pytest.mark.parametrize("name", ["code", "torch", "dass.lock.json", "settings"])
def test_nodes_that_compute_with_something_else_are_refused_at_both_ends(
    name: str, asked: tuple[Workspace, Settings, Job]
) -> None:
    ws, wanted, job = asked
    facts = facts_of(ws, wanted, "prune")
    told = (
        rf"Nodes differ in {name}: node 0 \({socket.gethostname()}\) has {re.escape(facts[name])}, and .* has another"
    )
    with pytest.raises(InputError, match=told):
        answer(ws, job, {**facts, name: "another"})
    with pytest.raises(InputError, match=told):
        wait_for_nodes(ws, job)


def test_what_differs_is_seen(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    facts = facts_of(ws, settings(), "prune")
    assert facts == facts_of(ws, settings(), "prune")
    assert facts["settings"] != facts_of(ws, settings(alpha=0.25), "prune")["settings"]
    ws.lock_file.write_text("{}")
    assert facts["dass.lock.json"] != facts_of(ws, settings(), "prune")["dass.lock.json"]


def test_nodes_that_do_not_come_are_given_up_in_time(asked: tuple[Workspace, Settings, Job]) -> None:
    ws, _, job = asked
    with pytest.raises(InfrastructureError, match=r"nodes is 2, and 1 had come after 1 s .*the disk that holds .*join"):
        wait_for_nodes(ws, job)


def test_an_address_where_nobody_answers_is_given_up_in_time(asked: tuple[Workspace, Settings, Job]) -> None:
    ws, _, job = asked
    with pytest.raises(
        InfrastructureError, match=f"rdzv_endpoint is {job.endpoint}: nothing answered there within 1 s"
    ):
        wait_for_address(ws, job)


def test_whoever_joins_where_nobody_works_is_told(asked: tuple[Workspace, Settings, Job]) -> None:
    ws, _, _ = asked  # as left behind by a run that was killed, or in a copy of the folder on another disk
    with pytest.raises(InfrastructureError, match=r"No run has worked in .* for 0 s\. Start one there"):
        join(ws, 0.0)


def test_whoever_joins_finds_the_run_that_a_schedule_started_in_the_checkout(tmp_path: Path) -> None:
    ws, wanted = committed(tmp_path / "ws"), with_engine(engine())
    with checked_out(ws, "HEAD") as checkout, workspace_lock(checkout.ws):
        file = checkout.ws.work / "settings.json"
        file.parent.mkdir(parents=True)
        file.write_text(wanted.model_dump_json(by_alias=True))
        job = ask_for_nodes(checkout.ws, wanted, "prune", file)
        with pytest.raises(InfrastructureError, match=f"{job.endpoint}: nothing answered there within 1 s"):
            join(ws, 0.0)
        assert str(job.failure(checkout.ws)).startswith(f"on {socket.gethostname()}: engine.rdzv_endpoint")


def committed(root: Path) -> Workspace:
    """What a checkout is made of, in git."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").touch()
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / "flows" / "templates" / "pipeline.yaml", root / "dvc.yaml")
    for line in ("init -q", "add .", "-c user.name=x -c user.email=x@y commit -q -m first"):
        subprocess.run(["git", *line.split()], cwd=root, check=True)
    return Workspace(root)


@pytest.mark.slow
def test_two_nodes_make_the_masks_that_one_makes(tmp_path: Path) -> None:
    one, two = (make_workspace(tmp_path / name) for name in ("one", "two"))
    prune(one, with_engine({"device": "cpu", "batch_tokens": 16}))
    program = "import sys; from tasks.pruning.join import *; print(join(Workspace(Path(sys.argv[1])), 60))"
    argv = [sys.executable, "-c", program, str(two.root)]
    other = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with workspace_lock(two):
        prune(two, with_engine(engine(rdzv_timeout=60)))
    assert other.communicate(timeout=60)[0].strip() == "['prune']"
    assert bytes_of(one.masks) == bytes_of(two.masks)
    assert not any((two.private / "nodes").iterdir())


@pytest.mark.slow
def test_nodes_started_by_hand_that_share_no_folder_or_settings_are_refused(tmp_path: Path) -> None:
    shared = make_workspace(tmp_path / "shared")
    assert by_hand(shared, shared, 0.5, 0.5) == ""
    assert shared.masks.exists()
    told = by_hand(make_workspace(tmp_path / "one"), make_workspace(tmp_path / "two"), 0.5, 0.5)
    assert "does not see what" in told
    assert "expected one disk for all" in told
    assert "Nodes differ in settings" in by_hand(shared, shared, 0.5, 0.25)


_STAGE = """
import sys
from pathlib import Path
from dass.errors import InputError
from tasks.pruning.stages import prune
from tasks.workspace.folder import Workspace
from tests.test_tasks.test_pruning.test_run import settings
try:
    asked = settings(alpha=float(sys.argv[2]))
    engine = asked.engine.model_copy(update={"batch_tokens": 16})
    prune(Workspace(Path(sys.argv[1])), asked.model_copy(update={"engine": engine}))
except InputError as error:
    sys.exit(f"dass: {error}")
"""


def by_hand(one: Workspace, two: Workspace, *alphas: float) -> str:
    """Two torchrun agents on one stage; what they said."""
    script, at = one.root / "stage.py", f"127.0.0.1:{free_port()}"
    script.write_text(_STAGE)
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", at, "--rdzv-id", "x"]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, str(script), str(ws.root), str(alpha)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for ws, alpha in zip((one, two), alphas, strict=True)
    ]
    said = "".join(agent.communicate(timeout=120)[1] for agent in agents)
    return "" if all(agent.returncode == 0 for agent in agents) else said
