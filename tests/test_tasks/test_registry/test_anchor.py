"""A ledger's head in git: what it says, who gets it, and what it sees."""

import signal
import subprocess
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.registry import keys
from tasks.registry.anchor import anchor, anchored, check_anchor, git_store, ref_of
from tasks.registry.chain import BrokenLedger, Chain
from tasks.registry.ledger import Ledger
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tests.bare_versions import bare_model, manifest_of
from tests.processes import anchor_head, at_once, start
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


def test_a_head_is_signed_where_the_user_signs_commits(ws: Workspace, ledger: Ledger, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    (tmp_path / "signers").write_text(f"dass@localhost {(tmp_path / 'key.pub').read_text()}")
    for name, value in {
        "user.email": "dass@localhost",
        "user.name": "somebody",
        "gpg.format": "ssh",
        "user.signingKey": str(tmp_path / "key.pub"),
        "gpg.ssh.allowedSignersFile": str(tmp_path / "signers"),
        "commit.gpgsign": "true",
    }.items():
        git(ws.root, "config", name, value)
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    git(ws.root, "verify-commit", ref_of(ledger.model))
    git(ws.root, "config", "commit.gpgsign", "false")
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    with pytest.raises(subprocess.CalledProcessError):
        git(ws.root, "verify-commit", ref_of(ledger.model))


def test_what_git_refuses_is_told_and_brought_along_later(
    ws: Workspace, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    git(ws.root, "config", "commit.gpgsign", "true")
    git(ws.root, "config", "gpg.program", "false")
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    assert "is not in refs/dass/ledger/" in caplog.text
    assert "git refused" in caplog.text
    git(ws.root, "config", "commit.gpgsign", "false")
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    seen = anchored(ws, ledger.model, git_store(ws))
    assert seen is not None
    assert seen.n == ledger.entries()[-1].n


def test_an_older_head_never_takes_a_newer_ones_place(ws: Workspace, ledger: Ledger) -> None:
    before = ledger.chain()
    ledger.record("gate", "1", manifest_of("1"), {})
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    newest = anchored(ws, ledger.model, git_store(ws))
    anchor(ws, ledger.model, git_store(ws), before)
    assert anchored(ws, ledger.model, git_store(ws)) == newest


def test_an_entry_written_and_anchored_while_the_ledger_is_read_is_no_cut(ws: Workspace, ledger: Ledger) -> None:
    store = git_store(ws)
    anchor(ws, ledger.model, store, ledger.chain())

    def read_while_another_writes() -> Chain:
        chain = ledger.chain()
        ledger.record("gate", "1", manifest_of("1"), {})
        anchor(ws, ledger.model, store, ledger.chain())
        return chain

    check_anchor(ws, ledger.model, store, read_while_another_writes)


def test_processes_that_anchor_at_once_leave_the_newest_head(ws: Workspace, ledger: Ledger, here: Store) -> None:
    for _ in range(3):
        ledger.record("gate", "1", manifest_of("1"), {})
        at_once(anchor_head, *[(here.uri, ws, ledger.model, 0)] * 3)
        seen = anchored(ws, ledger.model, git_store(ws))
        assert seen is not None
        assert seen.n == ledger.entries()[-1].n


def test_one_killed_before_every_write_is_made_up_for_by_the_next(ws: Workspace, ledger: Ledger, here: Store) -> None:
    keys.start(ws, ledger.model)
    for step in count(1):
        ledger.record("gate", "1", manifest_of("1"), {"step": step})
        last = ledger.entries()[-1]
        process = start(anchor_head, here.uri, ws, ledger.model, step)
        process.join(120)
        check_anchor(ws, ledger.model, git_store(ws), ledger.chain)  # it lags or is there, and is never wrong
        seen = anchored(ws, ledger.model, git_store(ws))
        assert seen is not None
        assert seen.n == last.n or process.exitcode == -signal.SIGKILL
        anchor(ws, ledger.model, git_store(ws), ledger.chain())
        seen = anchored(ws, ledger.model, git_store(ws))
        assert seen is not None
        assert seen.n == last.n
        if process.exitcode == 0:
            break
    assert step == 6  # an object, a tree, a commit, the ref, the push


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
    read = Ledger.open(ledger._client, ledger.model, other).chain
    with pytest.raises(
        BrokenLedger, match=rf"entry {last.n}, which refs/dass/ledger/.* in git remembers, is not there"
    ):
        check_anchor(other, ledger.model, git_store(other), read)


def test_outside_git_nothing_is_done(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    ws = Workspace(tmp_path / "plain")
    anchor(ws, ledger.model, git_store(ws), ledger.chain())
    check_anchor(ws, ledger.model, git_store(ws), ledger.chain)
    assert list(ws.root.iterdir()) == []
