"""Two schedulers of one workspace."""

import os
import signal
import subprocess
from contextlib import suppress

import pytest

from tests.test_flows.test_compress import wait_for
from tests.test_flows.victim import SECONDS, Victim, check_message

pytestmark = pytest.mark.slow


@pytest.mark.faults("two schedulers on one workspace")
def test_of_two_schedulers_at_once_one_serves_and_when_it_is_killed_another_may(victim: Victim) -> None:
    ws, alone = victim.ws, victim.commands.alone(victim.ws.private / "prefect")
    serve = ("dass", "serve", "--cron", "0 0 29 2 *")
    both = [alone.start(ws, *serve) for _ in range(2)]
    third = None
    try:
        wait_for(lambda: any(each.poll() is not None for each in both), seconds=SECONDS)
        (loser,) = [each for each in both if each.poll() is not None]
        (winner,) = [each for each in both if each is not loser]
        _, errors = loser.communicate()
        assert loser.returncode == 2
        check_message(errors, f"The schedule of {ws.root} is held by another run", f"process {winner.pid}")
        assert "The next run starts at" in _heard(winner)
        os.kill(winner.pid, signal.SIGKILL)
        winner.communicate()
        third = alone.start(ws, *serve)
        assert "The next run starts at" in _heard(third)
    finally:
        for each in [*both, *([third] if third else [])]:
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.communicate()


def _heard(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "The next run starts at" in line:
            break
    return "".join(said)
