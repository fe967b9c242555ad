"""A run that falls silent, loses its workspace to another one, and comes back."""

import json
import signal
import time

import pytest

from tests.test_flows.victim import Victim

pytestmark = pytest.mark.slow


@pytest.mark.faults("a lost heartbeat comes back")
def test_a_run_that_wakes_up_behind_another_one_stops_and_says_so(victim: Victim) -> None:
    with victim.pruning(DASS_LEASE="2") as run:
        run.send_signal(signal.SIGSTOP)
        victim.note_layers()
        time.sleep(2.5)
        taken = victim.commands(victim.ws, "dass", "run", "--json", DASS_LEASE="2")
        assert "The run before was lost (it has been silent for" in taken.stderr
        version = json.loads(taken.stdout)["version"]
        victim.holds(version)
        run.send_signal(signal.SIGCONT)
        victim.ends(run, "was taken over by another run", "finished layers are kept")
    victim.holds(version)
