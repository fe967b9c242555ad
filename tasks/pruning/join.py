"""This machine as one of the nodes of another's run: what `dass join` does."""

import json
import logging
import socket
import time
from pathlib import Path

from dass.errors import InfrastructureError
from tasks.pruning.nodes import Job, answer, asked_for, facts_of, note_failure, split
from tasks.pruning.processes import ProcessesError, end, reason_in, start_node
from tasks.versioning.checkout import standing
from tasks.workspace.folder import Workspace
from tasks.workspace.gpus import gpus_held
from tasks.workspace.lease import holder
from tasks.workspace.lock import lease_file
from tasks.workspace.settings import validate_settings

_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 30.0  # that ranks may take to end once the first node has withdrawn the work

logger = logging.getLogger("dass")


def join(ws: Workspace, wait: float) -> list[str]:
    """Work along with the run that holds the workspace, or the checkout that its schedule's runs work in, until that
    is over.

    Args:
        ws: on a disk that the nodes share.
        wait: seconds until some run holds it.

    Returns:
        The stages that were worked on.

    Raises:
        InputError: this machine computes with something else than the first node, all nodes are there, or another run
            has the GPU.
        InfrastructureError: no run came, or its address does not answer.
        ProcessesError: the work stopped, here or elsewhere.
    """
    places, done, since = [_Heart(ws)], list[str](), time.monotonic()
    known = set[str]()
    while True:
        if len(places) == 1 and (checkout := standing(ws)) is not None:  # the first scheduled run makes it
            places.append(_Heart(checkout))
        at_work = [each for each in places if each.beats()]
        for run in at_work:
            job = asked_for(run.ws)
            if job is not None and job.id not in known:
                known.add(job.id)
                _work_on(run.ws, job, run)
                done.append(job.stage)
                break
        if at_work:
            since = time.monotonic()
        elif done:
            return done
        elif time.monotonic() - since > wait:
            raise InfrastructureError(
                f"No run has worked in {ws.root}, or its checkout, for {wait:g} s. Start one there with engine.nodes "
                "above 1, and give this machine the disk that it works on."
            )
        time.sleep(_POLL_SECONDS)


class _Heart:
    """Whether a run holds a workspace, seen from any machine: its heartbeat goes on (`tasks.workspace.lease`)."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self._file = lease_file(ws)
        self._last: tuple[str, int] | None = None
        self._since = 0.0

    def beats(self) -> bool:
        here = holder(self._file)
        if here is None or here.state != "elsewhere":
            return here is not None and here.state == "alive"
        now = here.owner.token, here.owner.beats
        if now != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since <= here.owner.silence


def _work_on(ws: Workspace, job: Job, run: _Heart) -> None:
    file = ws.root / job.settings
    settings = validate_settings(json.loads(file.read_text(encoding="utf-8")), str(file))
    with gpus_held(ws, settings.engine, "dass join"):
        number = answer(ws, job, facts_of(ws, settings, job.stage))
        logger.info("%s: node %d of %d, %d process(es)", job.stage, number, job.nodes, job.processes)
        try:
            _wait_for_address(ws, job)
            _take_part(ws, job, number, run, file.with_name(f"processes_{number}.log"))
        except InfrastructureError as error:
            note_failure(ws, job, number, str(error))
            raise


def _wait_for_address(ws: Workspace, job: Job) -> None:
    since = time.monotonic()
    while True:
        try:
            socket.create_connection(split(job.endpoint), timeout=min(5.0, job.timeout)).close()
        except OSError as error:
            told = error.strerror or str(error)
        else:
            return
        if not job.stands(ws):
            raise ProcessesError(f"The run on {job.host} gave {job.stage} up before it began.")
        if time.monotonic() - since > job.timeout:
            raise InfrastructureError(
                f"engine.rdzv_endpoint is {job.endpoint}: nothing answered there within {job.timeout} s ({told}), "
                f"asked from {socket.gethostname()}. Expected an address of {job.host} that this machine reaches, with "
                "an open port."
            )
        time.sleep(_POLL_SECONDS)


def _take_part(ws: Workspace, job: Job, number: int, run: _Heart, log: Path) -> None:
    agent, withdrawn = start_node(ws, job, number, log), None
    try:
        while agent.poll() is None:
            if withdrawn is None and not (job.stands(ws) and run.beats()):
                withdrawn = time.monotonic()
            if withdrawn is not None and time.monotonic() - withdrawn > _LEAVE_SECONDS:
                raise ProcessesError(f"The run on {job.host} is gone, and its {job.stage} with it.")
            time.sleep(_POLL_SECONDS)
    finally:
        if agent.poll() is None:
            end(agent)
    if agent.returncode:
        raise ProcessesError(
            f"{job.stage} stopped on node {number} of {job.nodes} (status {agent.returncode}): {reason_in(log)}. "
            f"The run on {job.host} keeps what was finished; start both again to go on. Log: {log}"
        )
