"""The clock jumps while a run prunes: for the run and all that it starts, a month back and a month ahead."""

import os
from pathlib import Path

import pytest

from tests.test_flows.conftest import ROOT, Commands
from tests.test_flows.victim import SECONDS, Victim

pytestmark = pytest.mark.slow

_JUMPS = """
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine


def wait_and_jump():
    while not (days := Path(os.environ["CLOCK_JUMPS"]).read_text()):
        time.sleep(0.02)
    time_machine.travel(datetime.now(UTC) + timedelta(days=float(days)), tick=True).start()


threading.Thread(target=wait_and_jump, daemon=True).start()
"""
"""sitecustomize.py of each Python process. The monotonic clock goes on, as it does when a machine's date is set."""


@pytest.mark.faults("the clock jumps")
@pytest.mark.parametrize("days", ["-30", "30"])
def test_a_clock_that_jumps_changes_nothing_and_frees_no_workspace(victim: Victim, days: str, tmp_path: Path) -> None:
    pytest.importorskip("time_machine", reason="no clock that can be moved: pip install time-machine")
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(_JUMPS)
    now = tmp_path / "jump"
    now.touch()
    moved = {"PYTHONPATH": f"{tmp_path / 'clock'}{os.pathsep}{ROOT}", "CLOCK_JUMPS": str(now)}
    victim.commands = Commands({**victim.commands.environment, **moved})
    with victim.pruning() as run:
        now.write_text(days)
        victim.note_layers()
        beside = victim.commands(victim.ws, "dass", "run", status=2)
        assert "is held by another run" in beside.stderr
        told, errors = run.communicate(timeout=SECONDS)
        assert run.returncode == 0, errors
    assert "version" in told
    victim.holds("1")
