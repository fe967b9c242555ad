"""`dass run` with recovery on: one more stage, and `dass verify --replay` trains again."""

import json

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands

ON = {
    "steps": 4,
    "step_tokens": 128,
    "windows": 40,
    "sequence_length": 16,
    "learning_rate": 0.01,
    "evaluate_every": 2,
}


@pytest.mark.slow
def test_a_run_recovers_and_a_replay_gives_the_same_values(commands: Commands, finished: Workspace) -> None:
    changes = [part for key, value in ON.items() for part in ("-S", f"recover.{key}={value}")]
    answer = commands.run(finished, *changes)
    ran = {name for name, outcome in answer["stages"].items() if outcome == "ran"}
    assert ran == {"recover", "materialize", "evaluate", "tasks", "plots"}
    with commands.prefect() as prefect:
        artifacts = prefect.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["recover"])))
    assert artifacts[0].data == 100.0
    told = commands(finished, "dass", "verify", answer["version"], "--replay", "--json")
    proof = json.loads(told.stdout)
    assert proof["passed"], proof
    assert "trained again: the same values" in proof["steps"][-1]["told"]
    again = commands.run(finished)
    assert (again["version"], again["created"]) == (answer["version"], False)
    assert "up to date" in commands(finished, "dvc", "status").stdout
    before = commands.run(finished, "-S", "recover.steps=0")
    assert (before["version"], before["created"]) == ("1", False)
