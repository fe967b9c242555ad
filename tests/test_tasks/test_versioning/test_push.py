"""What stages made, in remotes that are folders; on S3 and SSH the same happens in tests/test_flows/test_remotes.py."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo

from dass.errors import InfrastructureError, InputError
from dass.files import complete_folder
from tasks.versioning.push import is_pushed, push
from tasks.versioning.remote import ask_remote, check_remotes, remotes_of
from tasks.versioning.stages import run_if_changed, start_run
from tasks.workspace.folder import Workspace

PARAMS = Path(__file__).parents[3] / "params.yaml"
PIPELINE = """
stages:
  first:
    cmd: python work.py first
    params: [prune]
    outs: [made/first]
"""
FILES = {"a.txt": "made", "b.txt": "also made", "empty.txt": ""}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A stage has run, and there are two remotes: store, the default, and other."""
    root = tmp_path / "ws"
    root.mkdir()
    shutil.copy(PARAMS, root / "params.yaml")
    (root / "dvc.yaml").write_text(PIPELINE)
    with Repo.init(str(root), no_scm=True) as repo, repo.config.edit("repo") as config:
        config["remote"] = {name: {"url": str(tmp_path / name)} for name in ("store", "other")}
        config["core"]["remote"] = "store"
    ws = Workspace.at(root)
    assert run_if_changed(ws, "first", work(ws), start_run(ws)) == "ran"
    return ws


def work(ws: Workspace) -> Callable[[], None]:
    def made() -> None:
        with complete_folder(ws.root / "made" / "first") as folder:
            for name, text in FILES.items():
                (folder / name).write_text(text)

    return made


def pulled(ws: Workspace, remote: str) -> dict[str, str]:
    """What a workspace gets from a remote that has nothing but dvc.lock."""
    shutil.rmtree(ws.root / ".dvc" / "cache")
    shutil.rmtree(ws.root / "made")
    with Repo(str(ws.root)) as repo:
        repo.pull(remote=remote)
    return {path.name: path.read_text() for path in (ws.root / "made" / "first").iterdir()}


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_null_is_the_default_remote_and_an_empty_list_is_none(ws: Workspace, tmp_path: Path) -> None:
    assert remotes_of(ws, None) == {"store": str(tmp_path / "store")}
    assert list(remotes_of(ws, ["other", "store", "other"])) == ["other", "store"]
    assert remotes_of(ws, []) == {}
    with Repo(str(ws.root)) as repo, repo.config.edit("repo") as config:
        del config["core"]["remote"]
    assert remotes_of(ws, None) == {}


def test_a_remote_that_dvc_does_not_know_is_refused(ws: Workspace) -> None:
    with pytest.raises(InputError, match="register.remotes names 'lost', and DVC knows other, store. Run: dvc remote"):
        check_remotes(ws, ["lost"])


@pytest.mark.parametrize(("url", "told"), [("gs://bucket/data", "pip install dvc-gs"), ("s4://bucket", "DVC cannot")])
def test_a_kind_of_remote_that_nothing_speaks_to_is_refused(ws: Workspace, url: str, told: str) -> None:
    with Repo(str(ws.root)) as repo, repo.config.edit("repo", validate=False) as config:
        config["remote"]["store"]["url"] = url
    with pytest.raises(InputError, match=told):
        check_remotes(ws, None)


def test_every_remote_gets_all_files_and_another_workspace_pulls_them(ws: Workspace) -> None:
    remotes = remotes_of(ws, ["store", "other"])
    assert not is_pushed(ws, remotes)
    push(ws, remotes)
    assert is_pushed(ws, remotes)
    for name in remotes:
        assert pulled(ws, name) == FILES


def test_a_result_that_was_not_pushed_yet_is_told_from_one_that_was(ws: Workspace) -> None:
    push(ws, remotes_of(ws, ["store"]))
    assert is_pushed(ws, remotes_of(ws, ["store"]))
    assert not is_pushed(ws, remotes_of(ws, ["store", "other"]))
    ws.params.write_text(ws.params.read_text().replace("sparsity: 0.5 ", "sparsity: 0.6 "))
    FILES["a.txt"] = "made anew"
    assert run_if_changed(ws, "first", work(ws), start_run(ws)) == "ran"
    FILES["a.txt"] = "made"
    assert not is_pushed(ws, remotes_of(ws, ["store"]))


@pytest.mark.faults("a DVC remote keeps half of a file")
def test_a_file_that_was_cut_off_in_the_store_is_sent_again(ws: Workspace, tmp_path: Path) -> None:
    remotes = remotes_of(ws, None)
    push(ws, remotes)
    whole = {path: path.read_bytes() for path in objects(tmp_path / "store")}
    for path in whole:
        path.chmod(0o644)
        path.write_bytes(whole[path][: len(whole[path]) // 2])
    (ws.private / "pushed.json").unlink()
    push(ws, remotes)
    assert {path: path.read_bytes() for path in objects(tmp_path / "store")} == whole
    assert pulled(ws, "store") == FILES


@pytest.mark.faults("a DVC remote keeps half of a file")
@pytest.mark.faults("a DVC remote loses files")
@pytest.mark.parametrize("left", [None, 2])
def test_a_single_file_is_missed_also_where_its_folders_list_is_there(
    ws: Workspace, tmp_path: Path, left: int | None
) -> None:
    remotes = remotes_of(ws, None)
    push(ws, remotes)
    [path] = [path for path in objects(tmp_path / "store") if path.read_text() == FILES["a.txt"]]
    path.chmod(0o644)
    path.unlink() if left is None else path.write_text(FILES["a.txt"][:left])
    (ws.private / "pushed.json").unlink()
    push(ws, remotes)
    assert pulled(ws, "store") == FILES


@pytest.mark.faults("a DVC remote loses files")
def test_files_that_left_the_store_are_sent_again(ws: Workspace, tmp_path: Path) -> None:
    remotes = remotes_of(ws, None)
    push(ws, remotes)
    shutil.rmtree(tmp_path / "store")
    (ws.private / "pushed.json").unlink()
    push(ws, remotes)
    assert pulled(ws, "store") == FILES


@pytest.mark.faults("a DVC remote is gone")
def test_a_store_that_takes_nothing_is_named_and_the_next_push_goes_on(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(InfrastructureError, match="remote store .* did not take the data: .*all that was made is kept"):
        push(ws, remotes_of(ws, None))
    assert not is_pushed(ws, remotes_of(ws, None))
    (tmp_path / "store").unlink()
    push(ws, remotes_of(ws, None))
    assert pulled(ws, "store") == FILES


def test_a_folder_says_whether_anything_was_pushed(ws: Workspace) -> None:
    assert not ask_remote(ws, "store", 10)
    push(ws, remotes_of(ws, None))
    assert ask_remote(ws, "store", 10)
