"""One run at a time on a GPU of this machine, whichever workspace it is of: two would take each other's memory.

A GPU is known by its UUID, which is the same to every process whatever `CUDA_VISIBLE_DEVICES` says. Who computes on it
holds a file of that name, in a folder that all of the machine's users share. What ends, in whatever way, lets go by
itself. A CPU is shared: nothing is held for it.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from dass.errors import InputError
from tasks.workspace.devices import choose_device
from tasks.workspace.flocked import hold
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Engine

WAIT = "DASS_GPU_WAIT"
"""Seconds that a GPU which another run has is waited for; without it, none."""
FOLDER = "DASS_GPU_LOCKS"
"""Where the files are; without it, /run/lock, or where temporary files go."""

_CARDS = ("nvidia[0-9]*", "kfd", "dxg")  # in /dev: NVIDIA's, AMD's, and either under WSL
_held_here: set[str] = set()

logger = logging.getLogger("dass")


def gpus_of(engine: Engine) -> dict[str, str]:
    """The GPUs that a run computes on here, by UUID, with torch's name of each; none where it computes on a CPU.

    Torch, which takes seconds, is loaded only where there is a card.

    Raises:
        InputError: as `choose_device`.
    """
    if engine.device == "cpu" or (engine.device == "auto" and not _has_cards()):
        return {}
    device = choose_device(engine.device)
    if device.type != "cuda":
        return {}
    import torch

    numbers = {torch.cuda.current_device() if device.index is None else device.index}
    ranks = max(engine.processes, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks > 1:
        numbers |= set(range(min(ranks, torch.cuda.device_count())))
    return {str(torch.cuda.get_device_properties(number).uuid): f"cuda:{number}" for number in sorted(numbers)}


def _has_cards() -> bool:
    return any(True for name in _CARDS for _ in Path("/dev").glob(name))


@contextmanager
def gpus_held(ws: Workspace, engine: Engine, what: str) -> Iterator[None]:
    """Hold the GPUs of a run. What this process holds already it may take again.

    Args:
        ws, what: who takes them, for others' messages: the workspace, and "dass run".
        engine: names the device.

    Raises:
        InputError: another run has one for longer than DASS_GPU_WAIT allows; the message names it. Or as `gpus_of`.
    """
    with _held(ws, gpus_of(engine), what):
        yield


@contextmanager
def _held(ws: Workspace, gpus: Mapping[str, str], what: str) -> Iterator[None]:
    taken = sorted(gpus.keys() - _held_here)  # in one order everywhere: two runs do not wait for one another
    wait = wait_allowed() if taken else 0.0
    with ExitStack() as until_done:
        for uuid in taken:
            path = _folder() / f"dass-gpu-{re.sub('[^A-Za-z0-9-]', '_', uuid)}"
            try:
                held = hold(path, _note(ws, what), f"GPU {uuid} ({gpus[uuid]})", wait=wait, tell=logger.warning)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written ({error.strerror or error}), and it keeps two runs off one GPU. "
                    f"Name another folder: {FOLDER}=FOLDER"
                ) from None
            until_done.callback(held.release)
            _held_here.add(uuid)
            until_done.callback(_held_here.discard, uuid)
        yield


def wait_allowed() -> float:
    """How long a GPU may be waited for.

    Raises:
        InputError: DASS_GPU_WAIT is no number of seconds.
    """
    text = os.environ.get(WAIT, "").strip() or "0"
    if not text.isdecimal():
        raise InputError(f"{WAIT} is {text!r}: expected whole seconds.")
    return float(text)


def _note(ws: Workspace, what: str) -> str:
    """Who holds it. Every user may read it, so no command line is in it."""
    flow_run = os.environ.get("PREFECT__FLOW_RUN_ID")
    told = f"{what}, flow run {flow_run}" if flow_run else what
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return f"process {os.getpid()} ({told}) in {ws.registry}, since {since}"


def _folder() -> Path:
    named = os.environ.get(FOLDER)
    if named:
        return Path(named)
    shared = Path("/run/lock")
    return shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
