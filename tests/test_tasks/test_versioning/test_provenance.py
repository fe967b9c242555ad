"""What git says of a workspace."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dass.errors import InputError
from tasks.versioning.follow_git import follow_git
from tasks.versioning.provenance import git_state
from tasks.workspace.folder import Workspace

PARAMS = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / ".dvc").mkdir()
    return Workspace.at(tmp_path)


@pytest.fixture(autouse=True)
def _no_repository_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")


def git_in(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_git_state_tells_commit_and_whether_settings_differ_from_it(ws: Workspace) -> None:
    assert git_state(ws) == (None, None)

    git_in(ws.root, "init")
    git_in(ws.root, "add", "params.yaml", "dvc.yaml")
    git_in(ws.root, "commit", "-m", "settings")
    commit = git_in(ws.root, "rev-parse", "HEAD")
    assert git_state(ws) == (commit, False)
    (ws.root / "notes.txt").write_text("not an input")
    assert git_state(ws) == (commit, False)
    ws.params.write_text(ws.params.read_text().replace("alpha: 0.5", "alpha: 0.25"))
    assert git_state(ws) == (commit, True)


def test_what_git_refuses_is_told_in_its_own_words(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    git_in(ws.root, "init")
    assert git_state(ws) == (None, True), "no commit yet"
    git_in(ws.root, "add", ".")
    git_in(ws.root, "commit", "-m", "all")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for ask in (git_state, follow_git):
        with pytest.raises(InputError, match="fatal: detected dubious ownership .* --add safe.directory"):
            ask(ws)
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    monkeypatch.setenv("PATH", str(ws.root))
    with pytest.raises(InputError, match="Install git"):
        git_state(ws)


def test_the_repository_of_a_git_hook_is_not_taken_for_the_workspaces(
    ws: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    git_in(other, "init")
    git_in(other, "commit", "--allow-empty", "-m", "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_state(ws) == (None, None)


def test_a_broken_link_to_a_repository_is_not_taken_for_none(ws: Workspace) -> None:
    (ws.root / ".git").write_text("gitdir: /nowhere/x\n")
    with pytest.raises(InputError, match="fatal: not a git repository: /nowhere/x"):
        git_state(ws)


def test_a_bare_repository_is_no_work_tree(tmp_path: Path) -> None:
    git_in(tmp_path, "init", "--bare")
    assert git_state(Workspace(tmp_path)) == (None, None)


def without_git(ws: Workspace) -> bool:
    from dvc.config import Config

    return bool(Config(str(ws.root / ".dvc"))["core"].get("no_scm"))


def test_dvc_follows_a_workspace_into_git_and_out_of_it(ws: Workspace) -> None:
    (ws.root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n['remote \"mine\"']\n    url = /x\n")
    git_in(ws.root, "init")
    follow_git(ws)
    assert not without_git(ws)
    (ws.root / ".gitignore").write_text("*\n")
    follow_git(ws)
    assert without_git(ws)
    shutil.rmtree(ws.root / ".git")
    follow_git(ws)
    assert without_git(ws)
    assert 'remote "mine"' in (ws.root / ".dvc" / "config.local").read_text()


def test_what_a_person_said_about_git_stays(ws: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    (ws.root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    git_in(ws.root, "init")
    follow_git(ws)
    assert without_git(ws)
    assert "Run: dvc config --unset core.no_scm" in caplog.text
