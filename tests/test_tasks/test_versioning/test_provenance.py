"""What git says of a workspace."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.versioning.provenance import git_state
from tasks.workspace.folder import Workspace

PARAMS = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    return Workspace.at(tmp_path)


def test_git_state_tells_commit_and_whether_settings_differ_from_it(ws: Workspace) -> None:
    assert git_state(ws) == (None, None)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=ws.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init")
    git("add", "params.yaml", "dvc.yaml")
    git("commit", "-m", "settings")
    commit = git("rev-parse", "HEAD")
    assert git_state(ws) == (commit, False)
    (ws.root / "notes.txt").write_text("not an input")
    assert git_state(ws) == (commit, False)
    ws.params.write_text(ws.params.read_text().replace("alpha: 0.5", "alpha: 0.25"))
    assert git_state(ws) == (commit, True)
