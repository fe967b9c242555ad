"""kill -9 of a run, again and again, each time a little further on."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.test_flows.test_compress import wait_for
from tests.test_flows.victim import SECONDS, Victim, layers_of

pytestmark = pytest.mark.slow

_SIGNS = (
    ".dass/work/*/layer_000.safetensors",
    ".dass/work/*/layer_001.safetensors",
    "artifacts/masks/manifest.json",
    "artifacts/pruned/model.safetensors",
    "metrics/evaluation.json",
    ".dass/registering/*.json",
    "mlartifacts/**/model.sig",
)
"""What a run makes, one behind the other; it is killed soon after it has made it."""


@pytest.mark.faults("kill -9 of a run", times=len(_SIGNS))
def test_a_run_killed_again_and_again_ends_in_the_bytes_of_an_undisturbed_one(victim: Victim) -> None:
    moments = random.Random(19)
    victim.start_from_here()
    for sign in _SIGNS:
        _kill_behind(victim, sign, moments.uniform(0.0, 0.2))
        assert victim.kept() <= layers_of(victim.ws).items()
        victim.note_layers()
    victim.goes_on()


def _kill_behind(victim: Victim, sign: str, seconds: float) -> None:
    """Start the run and kill it so long after there is a new file of that name."""
    before = _files(victim, sign)
    run = victim.commands.start(victim.ws, "dass", "run")
    try:
        wait_for(lambda: run.poll() is not None or bool(_files(victim, sign) - before), seconds=SECONDS)
        time.sleep(seconds)
        assert run.poll() is None, run.communicate()
        run.send_signal(signal.SIGKILL)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def _files(victim: Victim, sign: str) -> set[Path]:
    return set(victim.ws.root.glob(sign))
