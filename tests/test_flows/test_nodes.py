"""`dass run` on two nodes, each a real command with a torchrun of its own, on one machine's loopback."""

import json
from collections.abc import Callable

import pytest

from dass.files import read_json
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands
from tests.test_tasks.test_pruning.test_nodes import free_port

FEW = ("-S", "calibration.samples=16", "-S", "recover.steps=2", "-S", "recover.step_tokens=64")


def on_two_nodes() -> list[str]:
    return ["-S", "engine.nodes=2", "-S", f"engine.rdzv_endpoint=127.0.0.1:{free_port()}"]


@pytest.mark.slow
def test_a_run_on_two_nodes_makes_the_masks_of_one(commands: Commands, new_workspace: Callable[[], Workspace]) -> None:
    one, two = new_workspace(), new_workspace()
    commands.run(one, *FEW)
    other = commands.start(two, "dass", "join", "--json")
    commands.run(two, *FEW, *on_two_nodes())
    assert json.loads(other.communicate(timeout=60)[0]) == {"stages": ["prune", "recover"]}
    masks = [read_json(ws.masks / "manifest.json")["masks"] for ws in (one, two)]
    assert masks[0] == masks[1]
    record = read_json(two.recovered / "recovery.json")
    assert record["engine"].items() >= {"processes": 2, "nodes": 2}.items()
    assert commands(two, "dass", "verify", "1", "--replay").returncode == 0  # two processes of one machine
    assert not any((two.private / "nodes").iterdir())


@pytest.mark.slow
def test_a_node_that_is_killed_ends_the_run_and_the_next_one_goes_on(commands: Commands, finished: Workspace) -> None:
    asked = ("-S", "prune.alpha=0.25", *on_two_nodes())
    other = commands.start(finished, "dass", "join")
    run = commands.start(finished, "dass", "run", *asked)
    done = set(finished.work.glob("*/layer_000.safetensors"))
    while not set(finished.work.glob("*/layer_000.safetensors")) - done:
        assert run.poll() is None, run.communicate()
    other.kill()
    assert run.wait(60) == 3
    assert run.stderr is not None
    told = run.stderr.read().splitlines()[-1]
    assert told.startswith("dass: Pruning with 2 processes stopped in layer ")
    again = commands.start(finished, "dass", "join")
    commands.run(finished, *asked)
    assert again.wait(60) == 0
