"""Who holds a lock is named, and a process that is stopped is told apart from one that works."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tasks.workspace.locked import OTHERS, OURSELVES, holders, is_locked, told_holders, told_lock
from tests.frozen import frozen_holder


@pytest.mark.parametrize("what", ["file", "writing", "alone"])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_stopped_holder_is_named_with_what_to_do(what: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"pragma journal_mode={mode}")
        connection.execute("create table each (a)")
    with frozen_holder(path, what) as pid:
        assert holders(path) == [pid]
        told = told_holders(path)
        assert told.startswith(f"process {pid} (")
        assert told.endswith(f"which is stopped: `kill -CONT {pid}` lets it go on, `kill -9 {pid}` ends it")
        os.kill(pid, signal.SIGCONT)
        while psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            pass
        assert told_holders(path).endswith(")")
    assert holders(path) == []
    assert told_holders(path) == OTHERS


def test_our_own_lock_is_called_ours_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        assert holders(path) == [os.getpid()]
        assert told_holders(path) == OURSELVES
        with closing(sqlite3.connect(path, timeout=0)) as other, pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("create table each (a)")
        assert is_locked(caught.value)
        assert told_lock(path, 1.5).startswith(f"the database was locked for 1.5 s by {OURSELVES}. ")


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), OSError("locked"), ValueError("locked")])
def test_other_errors_are_no_lock(error: Exception) -> None:
    assert not is_locked(error)


def test_what_is_not_there_is_held_by_nobody(tmp_path: Path) -> None:
    assert holders(tmp_path / "none") == []
