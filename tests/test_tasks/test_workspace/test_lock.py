"""One run at a time in a workspace, and what a killed one left."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tasks.workspace.folder import Workspace
from tasks.workspace.lock import clear_workspace, workspace_lock

PARAMS = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    return Workspace.at(tmp_path)


def test_the_second_holder_of_a_workspace_is_refused_and_told_who_holds_it(ws: Workspace) -> None:
    code = (
        "import sys; from tasks.workspace.folder import Workspace; from tasks.workspace.lock import workspace_lock\n"
        + textwrap.dedent(
            """
        try:
            with workspace_lock(Workspace.at(sys.argv[1])): print("held")
        except ValueError as error: print(error)
        """
        )
    )
    root = Path(__file__).parents[3]
    ask = [sys.executable, "-c", code, str(ws.root)]
    with workspace_lock(ws):
        refused = subprocess.run(ask, cwd=root, capture_output=True, text=True, check=True).stdout
    assert f"held by another run (process {os.getpid()}, since 2" in refused
    assert len(refused.splitlines()) == 1
    assert subprocess.run(ask, cwd=root, capture_output=True, text=True, check=True).stdout == "held\n"


def test_what_a_killed_run_was_writing_is_cleared(ws: Workspace) -> None:
    folder, file = ws.root / "artifacts" / ".base.99999999.partial", ws.metrics / ".evaluation.json.99999999.partial"
    version = ws.private / ".version.ab_cd123.99999999.partial"
    folder.mkdir(parents=True)
    version.mkdir(parents=True)
    file.parent.mkdir()
    file.touch()
    (ws.metrics / "evaluation.json").touch()
    clear_workspace(ws)
    assert [path.name for path in ws.metrics.iterdir()] == ["evaluation.json"]
    assert list((ws.root / "artifacts").iterdir()) == []
    assert not version.exists()
