"""A registered version's workspace can be brought back from git and DVC."""

import subprocess
from collections.abc import Callable

import mlflow
import pytest

from flows.cli.main import run_command
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands


def git(ws: Workspace, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=ws.root, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def committed(finished: Workspace, commands: Commands) -> Workspace:
    """A workspace in git in which everything has run."""
    git(finished, "init", "-q")
    git(finished, "config", "user.name", "a")
    git(finished, "config", "user.email", "a@example.org")
    git(finished, "add", "-A")
    git(finished, "commit", "-qm", "a workspace")
    return finished


@pytest.mark.slow
def test_the_version_names_an_experiment_that_holds_its_settings(committed: Workspace, commands: Commands) -> None:
    options = ["-S", "register.save_experiment=true", "-S", "prune.sparsity=0.4"]
    version = commands.run(committed, *options)["version"]
    after = {
        path: (committed.root / path).read_bytes() for path in ("params.yaml", "dvc.lock", "metrics/evaluation.json")
    }
    made = mlflow.MlflowClient(f"sqlite:///{committed.root / 'mlflow.db'}").get_model_version("tiny-dass", version)
    commit = made.tags["dvc_experiment.commit"]
    assert made.tags["dvc_experiment.name"] in commands(committed, "dvc", "exp", "list", "--name-only").stdout
    assert git(committed, "show", f"{commit}:params.yaml").encode() == after["params.yaml"]
    assert {path: (committed.root / path).read_bytes() for path in after} == after
    assert git(committed, "rev-parse", f"{commit}^") == git(committed, "rev-parse", "HEAD")
    assert commands.run(committed)["created"] is False
    assert git(committed, "for-each-ref", "refs/exps", "--format=%(objectname)").split().count(commit) == 1


def test_outside_git_it_is_refused_before_any_work(
    new_workspace: Callable[[], Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    ws = new_workspace()
    assert run_command(["run", "-w", str(ws.root), "-S", "register.save_experiment=true"]) == 2
    assert "has no git commit: DVC saves experiments in git" in capsys.readouterr().err
    assert not (ws.root / "artifacts" / "base").exists()


def test_a_dvc_that_does_without_git_is_told_how_to_use_it(
    committed: Workspace, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(committed, "dvc", "config", "core.no_scm", "true")
    assert run_command(["run", "-w", str(committed.root), "-S", "register.save_experiment=true"]) == 2
    assert "Run: dvc config core.no_scm false" in capsys.readouterr().err
