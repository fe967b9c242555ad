"""A real DVC repository: what a stage made is read once for our digest and DVC's, or not at all."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc_data.hashfile import hash as dvc_hash

from dass.digests import copy_file, digests_of
from dass.files import complete_folder
from tasks.versioning.stages import run_if_changed, start_run, watched_inputs
from tasks.workspace import digests
from tasks.workspace.digests import LEAST_BYTES, known_digests, remember
from tasks.workspace.folder import Workspace
from tests.test_tasks.test_versioning.test_push import PARAMS, PIPELINE

CONTENT = random.Random(0).randbytes(LEAST_BYTES + 1)
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["hardlink,copy", "copy"])
def ws(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which nothing has run, and nothing is remembered."""
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "ws"
    root.mkdir()
    shutil.copy(PARAMS, root / "params.yaml")
    (root / "dvc.yaml").write_text(PIPELINE)
    with Repo.init(str(root), no_scm=True) as repo, repo.config.edit("repo") as config:
        config["cache"] = {"type": request.param}
    (tmp_path / "origin").write_bytes(CONTENT)
    return Workspace.at(root)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who read a large file for a digest, in order: "dass" or "dvc"."""
    read: list[str] = []

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(path: str | Path, *arguments: object, **options: object) -> object:
            if os.path.exists(path) and os.path.getsize(path) >= LEAST_BYTES:  # DVC keeps lists in memory
                read.append(name)
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(dvc_hash, "file_md5", counted("dvc", dvc_hash.file_md5))
    monkeypatch.setattr(digests, "digests_of", counted("dass", digests_of))
    return read


def work(ws: Workspace, told: bool) -> Callable[[], None]:
    """Writes a large file and a small one; `told`: with the digests that come from the writing."""

    def made() -> None:
        with complete_folder(ws.root / "made" / "first") as folder:
            found = copy_file(ws.root.parent / "origin", folder / "large", md5=True)
            if told:
                remember(folder / "large", found)
            (folder / "small").write_text("small")

    return made


@pytest.mark.parametrize(("told", "expected"), [(True, []), (False, ["dass"])])
def test_a_stages_output_is_read_at_most_once(ws: Workspace, reads: list[str], told: bool, expected: list[str]) -> None:
    assert run_if_changed(ws, "first", work(ws, told), start_run(ws)) == "ran"
    assert run_if_changed(ws, "first", work(ws, told), start_run(ws)) == "unchanged"
    assert known_digests(ws.root / "made" / "first" / "large").sha256 == SHA256  # DVC's links are no other file
    assert reads == expected
    assert (ws.root / ".dvc" / "cache" / "files" / "md5" / MD5[:2] / MD5[2:]).read_bytes() == CONTENT
    with Repo(str(ws.root)) as repo:
        assert repo.status() == {}
    assert reads == expected


def test_dvc_repro_finds_the_digests_too(ws: Workspace, reads: list[str]) -> None:
    with watched_inputs(ws, "first"):
        work(ws, told=True)()
    with Repo(str(ws.root)) as repo:
        stage = repo.stage.load_one(str(ws.root / "dvc.yaml"), "first")
        stage.save_outs()
    assert reads == []
    tree = stage.outs[0].get_obj()
    assert {info.value for _, _, info in tree} == {MD5, hashlib.md5(b"small").hexdigest()}


def test_an_output_edited_with_its_time_set_back_is_noticed(ws: Workspace, reads: list[str]) -> None:
    run_if_changed(ws, "first", work(ws, told=True), start_run(ws))
    path = ws.root / "made" / "first" / "large"
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"edited")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_digests(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != SHA256
