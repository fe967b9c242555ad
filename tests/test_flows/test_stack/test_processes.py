"""Processes that outlive the command that starts them: known again, and ended with all they started, nothing else."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dass.errors import InfrastructureError
from flows.stack.processes import MARK, Started, begin, stop

# A service that starts a child in a session of its own, which outlives it.
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
PARENT += "start_new_session=True); open('ready', 'w'); time.sleep(60)"


def run(folder: Path, code: str, works: Callable[[], bool], seconds: float = 30) -> Started:
    command, log = [sys.executable, "-c", code], folder / "log"
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD": "s3cr3t"}
    return begin(command, folder, log, environment, "mark", works=works, what="It", seconds=seconds)


def marked() -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get(MARK) == "mark" and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except psutil.Error:
            continue
    return found


def test_what_a_service_started_ends_with_it_also_when_it_was_killed(tmp_path: Path) -> None:
    started = run(tmp_path, PARENT, (tmp_path / "ready").exists)
    assert len(marked()) == 2
    psutil.Process(started.pid).kill()
    while started.is_alive:
        time.sleep(0.01)
    assert len(marked()) == 1
    assert stop(started, "mark", 5)
    assert not marked()
    assert not stop(started, "mark", 5)


def test_another_process_of_that_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        noted = Started(other.pid, "another start of the machine 1")
        assert not noted.is_alive
        assert not stop(noted, "mark", 1)
        assert other.poll() is None
        other.kill()


def test_one_that_ends_is_told_with_its_last_words_and_without_secrets(tmp_path: Path) -> None:
    code = "print('no: postgresql://kim:s3cr3t@h/db'); raise SystemExit(3)"
    with pytest.raises(InfrastructureError, match=r"It did not start: no: postgresql://h/db \(log: .*log\)"):
        run(tmp_path, code, lambda: False)


def test_one_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"It did not answer in 0 s: it said nothing"):
        run(tmp_path, "import time; time.sleep(60)", lambda: False, seconds=0)
    assert not marked()
