"""Who waits for a file without end says for whom."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tasks.workspace import flocked
from tests.frozen import frozen_holder


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_file_is_held_by_one_at_a_time(is_folder: bool, tmp_path: Path) -> None:
    path = tmp_path if is_folder else tmp_path / "lock"
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with flocked.flocked(path, "it"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1


def test_a_stopped_process_that_is_waited_for_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flocked, "_TELL_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, "dass"), frozen_holder(tmp_path / "lock", "file") as pid:
        threading.Timer(1.0, lambda: os.kill(pid, signal.SIGKILL)).start()
        with flocked.flocked(tmp_path / "lock", "The thing"):
            pass
    [told] = [record.message for record in caplog.records]
    assert told.startswith(f"The thing is held by process {pid} (")
    assert f"kill -CONT {pid}" in told
    assert told.endswith(": waiting for it")
