"""Who holds a workspace: a heartbeat, what becomes of those that fall silent, and of those that come back."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dass.errors import InputError
from dass.files import write_json
from tasks.workspace import lease as leases
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Lease, LeaseLostError, Owner, fate, silence_allowed, take_lease
from tasks.workspace.lock import check_held, lease_of, workspace_lock
from tests.beside import beside

ROOT = Path(__file__).parents[3]
HOLDS = """
import sys
from pathlib import Path
from dass.files import write_json
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import lease_of, workspace_lock
ws = Workspace(Path(sys.argv[1]))
try:
    with workspace_lock(ws):
        lease_of(ws).note(flow_run="abc")
        print("held", flush=True)
        sys.stdin.readline()
        write_json(ws.root / "written.json", "by the first")
        print("written", flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def path(ws: Workspace) -> Path:
    ws.private.mkdir()
    return ws.private / "lock"


def holder(ws: Workspace) -> AbstractContextManager[subprocess.Popen[str]]:
    """Another process that holds the workspace, and writes when it is told to."""
    return beside(HOLDS, str(ws.root), says="held", DASS_LEASE="1")


class Clock:
    """A machine's monotonic clock."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_given_back_is_nobodys(path: Path) -> None:
    for _ in range(2):
        lease = take_lease(path, "it")
        assert lease.lost is None
        lease.check()
        lease.release()
    assert path.read_text() == ""
    assert [each.name for each in path.parent.iterdir()] == ["lock"]


def test_the_heart_beats(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_LEASE", "1")
    lease = take_lease(path, "it")
    try:
        lease.note(flow_run="abc")
        time.sleep(0.3)
        owner = Owner.read(path.read_text())
    finally:
        lease.release()
    assert owner is not None
    assert owner.beats > 0
    assert time.monotonic() - owner.at < 1.0
    assert (owner.pid, owner.work, owner.silence) == (os.getpid(), {"flow_run": "abc"}, 1.0)


@pytest.mark.faults("kill -9 of a run")
def test_a_killed_run_is_noticed_at_once_and_says_what_it_worked_on(ws: Workspace) -> None:
    with holder(ws) as process:
        with pytest.raises(InputError, match=rf"is held by another run \(process {process.pid}, since 2"):
            take_lease(ws.private / "lock", str(ws.root))
        process.kill()
        process.wait()
        with workspace_lock(ws):
            lease = lease_of(ws)
            assert lease is not None
            assert lease.lost is not None
            assert (lease.lost.pid, lease.lost.work) == (process.pid, {"flow_run": "abc"})
            assert lease.reason == "its process was killed"
    with workspace_lock(ws):
        assert (lease := lease_of(ws)) is not None
        assert lease.lost is None


@pytest.mark.faults("a lost heartbeat comes back")
def test_one_that_was_only_asleep_stops_before_it_writes(ws: Workspace) -> None:
    with holder(ws) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.3)
        with workspace_lock(ws):
            assert (lease := lease_of(ws)) is not None
            assert re.fullmatch(r"it has been silent for \d s", lease.reason)
            process.send_signal(signal.SIGCONT)
            said, _ = process.communicate("go on\n", timeout=20)
            assert said.startswith(f"LeaseLostError {ws.root} was taken over by another run (process {os.getpid()}")
            assert not (ws.root / "written.json").exists()
            check_held(ws)  # the new owner's record is as it was
            write_json(ws.root / "written.json", "by the second")
    assert json.loads((ws.root / "written.json").read_text()) == "by the second"


def test_a_lock_that_was_removed_is_lost(ws: Workspace) -> None:
    with workspace_lock(ws):
        (ws.private / "lock").unlink()
        with pytest.raises(LeaseLostError, match="it was removed"):
            write_json(ws.root / "x.json", 1)
        with pytest.raises(LeaseLostError):
            check_held(ws)
    assert not (ws.root / "x.json").exists()


def test_of_many_that_take_over_at_once_one_has_it(path: Path) -> None:
    gone = replace(Owner.here(), pid=99999999)
    path.write_text(json.dumps(asdict(gone)))
    together = threading.Barrier(8)
    taken: list[Lease] = []
    refused: list[str] = []

    def take() -> None:
        together.wait()
        try:
            taken.append(take_lease(path, "it"))
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1, refused
    assert len(refused) == 7
    assert taken[0].lost == gone
    taken[0].check()
    taken[0].release()


def test_the_fate_of_an_owner_on_this_machine() -> None:
    owner = replace(Owner.here(), at=1000.0, silence=60.0)
    assert fate(owner, True, lambda: owner, Clock(1000.0)) == "its process was killed"
    assert fate(owner, False, lambda: owner, Clock(1059.0)) is None
    assert fate(owner, False, lambda: owner, Clock(1061.0)) == "it has been silent for 61 s"
    assert fate(replace(owner, boot="another"), True, lambda: owner, Clock()) == "its machine was restarted"


def test_the_fate_of_an_owner_on_another_machine_is_watched_on_one_clock() -> None:
    """Its clocks may say anything."""
    there = replace(Owner.here(), boot="theirs", machine="another", host="gpu-7", at=9e9, silence=60.0)
    clock = Clock()
    assert fate(there, True, lambda: there, clock) == "nothing has been heard of gpu-7 for 60 s"
    assert 1060.0 < clock.now < 1070.0
    clock = Clock()
    beats = iter([there, there, replace(there, beats=1, at=-5.0)])
    assert fate(there, True, lambda: next(beats), clock) is None
    assert clock.now < 1010.0
    assert fate(there, True, lambda: replace(there, token="a third one"), Clock()) is None


def test_a_machine_that_lives_is_not_taken_over_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_LEASE", "1")
    lease = take_lease(path, "it")
    try:
        monkeypatch.setattr(leases, "_boot", lambda: "another machine's")
        monkeypatch.setattr(leases, "_machine", lambda: "another")
        monkeypatch.setattr(leases, "take_flock", lambda file: True)  # a shared folder without locks
        with pytest.raises(InputError, match=rf"process {os.getpid()} on "):
            take_lease(path, "it")
    finally:
        lease.release()


@pytest.mark.parametrize("text", ["soon", "0.5", "-1", "nan", "99999"])
def test_a_silence_that_cannot_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DASS_LEASE", text)
    with pytest.raises(InputError, match=r"DASS_LEASE is '.*': expected seconds, 1 to 3600"):
        silence_allowed()
