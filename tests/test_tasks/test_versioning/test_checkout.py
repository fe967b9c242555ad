"""A checkout for scheduled runs: at a revision, beside the person's files, with the workspace's caches and stores."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dass.errors import InputError
from flows.initialise import make_workspace
from tasks.registry.place import artifacts, database, embedded_uri
from tasks.registry.tracking import is_embedded
from tasks.versioning.checkout import Checkout, can_check_out, checked_out
from tasks.versioning.repository import dvc_repo
from tasks.workspace.folder import Workspace
from tests.models import save_tiny_checkpoint, tiny_text


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@y")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def _committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("repository")
    root = top / "models" / "tiny"
    root.mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    save_tiny_checkpoint(root / "model")
    (root / "text.txt").write_text(tiny_text(100))
    make_workspace(root, str(root / "model"), str(root / "text.txt"), str(root / "text.txt"))
    with (root / ".gitignore").open("a") as ignored:
        ignored.write("/model/\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return top


@pytest.fixture
def ws(_committed: Path, tmp_path: Path) -> Workspace:
    """A committed workspace in a folder of a repository; git does not have its model."""
    return Workspace(shutil.copytree(_committed, tmp_path / "repository") / "models" / "tiny")


def at(ws: Workspace, revision: str = "HEAD") -> Checkout:
    with checked_out(ws, revision) as checkout:
        return checkout


def test_it_holds_what_is_committed_and_touches_nobodys_files(ws: Workspace) -> None:
    ws.params.write_text(ws.params.read_text().replace("alpha: 0.5", "alpha: 0.75"))
    before = git(ws.root, "status", "--porcelain"), ws.params.read_bytes()
    made = at(ws)
    there = made.ws.root
    assert there == ws.private / "checkout" / "models" / "tiny"
    assert made.commit == git(ws.root, "rev-parse", "HEAD") == git(there, "rev-parse", "HEAD")
    assert "alpha: 0.75" not in made.ws.params.read_text()
    assert (there / "text.txt").is_file()
    assert not (there / "text.txt").is_symlink()
    assert (there / "model").resolve() == ws.root / "model"  # which git does not have
    assert (git(ws.root, "status", "--porcelain"), ws.params.read_bytes()) == before
    assert git(there, "status", "--porcelain").endswith("model")  # the rule is for a folder, and this is a link


def test_it_moves_to_another_commit_and_keeps_what_was_made(ws: Workspace) -> None:
    first = at(ws)
    kept = first.ws.work / "layers"
    kept.mkdir(parents=True)
    first.ws.params.write_text("what a run changed")
    ws.params.write_text(ws.params.read_text() + "# more\n")
    git(ws.root, "commit", "-q", "-a", "-m", "second")
    lock = Path(git(first.ws.root, "rev-parse", "--path-format=absolute", "--git-path", "index.lock"))
    lock.touch()  # of a git that was killed
    second = at(ws)
    assert second.commit != first.commit
    assert second.ws.params.read_text().endswith("# more\n")
    assert kept.is_dir()
    back = at(ws, "main~1")
    assert back.commit == first.commit
    assert not back.ws.params.read_text().endswith("# more\n")


def test_one_that_was_damaged_is_made_anew(ws: Workspace) -> None:
    (at(ws).ws.root.parents[1] / ".git").write_text("gitdir: /nowhere\n")
    assert at(ws).ws.params.is_file()


def test_dvc_and_mlflow_are_the_workspaces_own(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = ws.root / ".dvc" / "config"
    text = config.read_text().replace("[core]\n", "[core]\n    remote = store\n")
    config.write_text(text + "['remote \"store\"']\n    url = ../../store\n")
    (ws.root / ".dvc" / "config.local").write_text("['remote \"store\"']\n    verify = true\n")
    git(ws.root, "commit", "-q", "-a", "-m", "remote")
    there = at(ws).ws
    with dvc_repo(ws) as repo, dvc_repo(there) as its:
        assert its.cache.local_cache_dir == repo.cache.local_cache_dir == str(ws.root / ".dvc" / "cache")
        assert its.config["remote"]["store"]["url"] == str(ws.root.parent / "store")
        assert its.config["remote"]["store"]["verify"] is True
        assert its.config["core"]["remote"] == "store"
        assert not its.config["core"].get("no_scm")
    assert (database(there), artifacts(there)) == (database(ws), artifacts(ws))
    assert embedded_uri(there) == embedded_uri(ws)
    assert is_embedded(there)


def test_what_it_cannot_work_with_is_refused(ws: Workspace) -> None:
    with pytest.raises(InputError, match=r"--revision is 'nightly': git knows no such commit"):
        at(ws, "nightly")
    with pytest.raises(InputError, match=r"git knows no such commit"):
        at(ws, "--all")
    with checked_out(ws, "HEAD"), pytest.raises(InputError, match=r"^The checkout of .* is held by another run"):
        at(ws)
    (ws.root.parent / "beside.txt").write_text("text")
    ws.params.write_text(ws.params.read_text().replace("./text.txt", "../beside.txt"))
    git(ws.root, "commit", "-q", "-a", "-m", "beside")
    with pytest.raises(InputError, match=rf"leads out of .* absolute path: {ws.root.parent}/beside.txt"):
        at(ws)
    git(ws.root, "rm", "-q", "--cached", "params.yaml")
    git(ws.root, "commit", "-q", "-m", "none")
    with pytest.raises(InputError, match=r"HEAD \(commit \w{10}\) has no params.yaml .* Run: git add params.yaml"):
        at(ws)


def test_without_commits_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    assert not can_check_out(Workspace(tmp_path))
    git(tmp_path, "init", "-q")
    assert not can_check_out(Workspace(tmp_path))
