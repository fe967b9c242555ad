"""A ledger's head in git: what it says, who gets it, and what it sees."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.registry import keys
from tasks.registry.anchor import anchor, anchored, check_anchor, git_store, ref_of
from tasks.registry.chain import BrokenLedger
from tasks.registry.ledger import Ledger
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tests.bare_versions import bare_model, manifest_of
from tests.stores import Store, sqlite_store


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with sqlite_store(tmp_path_factory.mktemp("anchored")) as made:
        yield made


@pytest.fixture
def client(here: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here.uri)
    with tracking(here.workspace) as made:
        yield made


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace in a clone."""
    git(tmp_path, "init", "-q", "--bare", "origin")
    git(tmp_path, "clone", "-q", "origin", "ws")
    return Workspace(tmp_path / "ws")


@pytest.fixture
def ledger(client: MlflowClient, ws: Workspace) -> Ledger:
    bare_model(client, model := f"a model's ..name~^ {uuid.uuid4().hex}")
    return Ledger.open(client, model, ws)


def test_each_new_head_is_one_commit_behind_the_last(ws: Workspace, ledger: Ledger) -> None:
    store, ref = git_store(ws), ref_of(ledger.model)
    for _ in range(2):
        anchor(ws, ledger.model, store, ledger.chain())
    assert git(ws.root, "rev-list", "--count", ref) == "1"
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, store, ledger.chain())
    assert git(ws.root, "rev-list", "--count", ref) == "2"
    seen, last = anchored(ws, ledger.model, store), ledger.entries()[-1]
    assert seen is not None
    assert (seen.n, seen.digest) == (last.n, last.digest)
    assert git(ws.root, "status", "--porcelain") == ""


def test_it_is_pushed_where_a_team_wrote_down_its_keys(ws: Workspace, ledger: Ledger, tmp_path: Path) -> None:
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    assert git(tmp_path / "origin", "for-each-ref") == ""
    keys.start(ws, ledger.model)
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    assert ref_of(ledger.model) in git(tmp_path / "origin", "for-each-ref")


def test_a_push_that_fails_is_told(ws: Workspace, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    keys.start(ws, ledger.model)
    git(ws.root, "remote", "set-url", "origin", "/nowhere/at/all")
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    assert "stays in this repository for now: git push said" in caplog.text


def test_a_cut_ledger_is_seen_by_a_clone_that_never_read_it(
    ws: Workspace, ledger: Ledger, here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.start(ws, ledger.model)
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    last = ledger.entries()[-1]
    git(tmp_path, "clone", "-q", "origin", "other")
    git(tmp_path / "other", "fetch", "-q", "origin", "refs/dass/*:refs/dass/*")
    sql = "DELETE FROM params WHERE run_uuid = ? AND key = ?"
    assert here.execute(sql, ledger.run_id, f"entry.{last.n:06d}") == 1
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new user"))
    other = Workspace(tmp_path / "other")
    chain = Ledger.open(ledger._client, ledger.model, other).chain()
    with pytest.raises(
        BrokenLedger, match=rf"entry {last.n}, which refs/dass/ledger/.* in git remembers, is not there"
    ):
        check_anchor(other, ledger.model, git_store(other), chain)


def test_outside_git_nothing_is_done(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    ws = Workspace(tmp_path / "plain")
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    check_anchor(ws, ledger.model, git_store(ws), ledger.chain())
    assert list(ws.root.iterdir()) == []
