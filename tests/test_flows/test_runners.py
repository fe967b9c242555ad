"""What a sweep's own cluster is given."""

import os
import subprocess
import sys

import pytest

from flows.runners import runner_of
from tasks.workspace.settings import Sweep

NAME = "OMP_WAIT_POLICY"


@pytest.mark.parametrize(("before", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_processes_of_a_cluster_here_sleep_while_they_wait_unless_somebody_chose(
    before: str | None, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, before or "")
    if before is None:
        monkeypatch.delenv(NAME)
    runner_of(Sweep(runner="dask", parallel=2))
    heard = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.environ['{NAME}'])"], capture_output=True, text=True
    )
    assert heard.stdout.strip() == then


def test_threads_of_this_process_wait_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    runner_of(Sweep(runner="threads", parallel=2))
    assert NAME not in os.environ
