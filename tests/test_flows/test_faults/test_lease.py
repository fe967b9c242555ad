"""A run that falls silent, loses its workspace to another one, and comes back; and one frozen with a lock in hand."""

import json
import signal
import subprocess
import time

import pytest

from tasks.registry.place import database
from tasks.workspace.locked import holders
from tests.frozen import freeze, frozen_holder
from tests.test_flows.victim import Victim

pytestmark = pytest.mark.slow


@pytest.mark.faults("a lost heartbeat comes back")
def test_a_run_that_wakes_up_behind_another_one_stops_and_says_so(victim: Victim) -> None:
    with victim.pruning(DASS_LEASE="2") as run:
        _freeze_between_writes(run, victim)
        victim.note_layers()
        time.sleep(2.5)
        taken = victim.commands(victim.ws, "dass", "run", "--json", DASS_LEASE="2")
        assert "The run before was lost (it has been silent for" in taken.stderr
        version = json.loads(taken.stdout)["version"]
        victim.holds(version)
        run.send_signal(signal.SIGCONT)
        victim.ends(run, "was taken over by another run", "finished layers are kept")
    victim.holds(version)


@pytest.mark.faults("a process is frozen in the middle of a write to MLflow's database")
def test_a_run_that_meets_a_lock_in_a_frozen_hand_names_it_and_the_next_one_registers(victim: Victim) -> None:
    with victim.pruning(DASS_TIMEOUT="3") as run, frozen_holder(database(victim.ws), "writing") as pid:
        victim.ends(run, f"process {pid} (", "which is stopped", f"`kill -CONT {pid}`")
    victim.goes_on()


def _freeze_between_writes(run: "subprocess.Popen[str]", victim: Victim) -> None:
    """Freeze a run when it holds no lock of the database, which the run that takes over must write to."""
    freeze(run.pid)
    while run.pid in holders(database(victim.ws)):
        run.send_signal(signal.SIGCONT)
        time.sleep(0.01)
        freeze(run.pid)
