"""Zero-shot tasks as a stage of the pipeline, in processes of their own."""

import json
from collections.abc import Callable

import pytest

from tasks.workspace.folder import Workspace
from tests.task_documents import write_task_files
from tests.test_flows.conftest import Commands

pytestmark = pytest.mark.slow


def test_a_changed_limit_asks_again_and_does_nothing_else(
    new_workspace: Callable[[], Workspace], commands: Commands
) -> None:
    ws = new_workspace()
    files = write_task_files(ws.root)
    asks = ["-S", "evaluate.tasks=[piqa]", "-S", f"evaluate.task_files={json.dumps(files)}", "-S", "evaluate.limit=4"]
    first = commands.run(ws, *asks)
    assert first["tasks"]["tasks"]["piqa"]["documents"] == 4
    again = commands.run(ws, "-S", "evaluate.limit=5")
    assert {stage for stage, outcome in again["stages"].items() if outcome != "unchanged"} == {"tasks"}
    assert again["tasks"]["tasks"]["piqa"]["documents"] == 5
    assert json.loads(commands(ws, "dvc", "status", "--json").stdout) == {}
    rows = json.loads(commands(ws, "dass", "answers", "2", "--task", "piqa", "--json").stdout)
    assert [row["doc"] for row in rows] == list(range(5))
    assert "Answers" in commands(ws, "dass", "answers").stdout
    before = ws.params.read_bytes()
    refused = commands(ws, "dass", "run", "-S", "evaluate.limit=13", status=2)
    assert "evaluate.limit is 13: piqa has 12 documents" in refused.stderr
    unknown = commands(ws, "dass", "run", "-S", "evaluate.tasks=[piqqa]", status=2)
    assert "knows no task 'piqqa'. Nearest: " in unknown.stderr
    assert ws.params.read_bytes() == before
    none = commands.run(ws, "-S", "evaluate.tasks=[]")
    assert none["tasks"] == {"tasks": {}}
