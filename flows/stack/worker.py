"""A worker that looks first at what the one before it left: Prefect's own, behind a freeing of slots."""

import os
import sys
from collections.abc import Mapping
from typing import NoReturn
from urllib.parse import quote

from dass.errors import InputError
from flows.slots import NewWorker, free_slots, own_name
from tasks.workspace.flocked import hold
from tasks.workspace.folder import Workspace


def become_worker(ws: Workspace, pool: str, name: str | None, environment: Mapping[str, str]) -> NoReturn:
    """Free the slots of dead runs, and become `prefect worker start` in the same process.

    Args:
        ws: where its runs begin, and no other worker's meanwhile.
        pool: Prefect's work pool.
        name: Prefect's name of it; None: after this machine.
        environment: the worker's.

    Raises:
        InputError: a worker is at work in the workspace, or Prefect's settings cannot be used or name no server.
    """
    from flows.prefect_settings import prefect_settings

    if not prefect_settings().api.url:
        raise InputError("PREFECT_API_URL is not set: a worker needs the address of the server that it works for.")
    name = name or own_name()
    ws.private.mkdir(exist_ok=True)
    held = hold(
        ws.private / f"worker-{quote(pool, safe='')}",
        f"process {os.getpid()}, worker {name}",
        f"Pool {pool}'s work in {ws.root}",
    )
    held.keep_behind_exec()
    free_slots(ws, NewWorker(name, pool))
    command = ("worker", "start", "--pool", pool, "--type", "process", "--name", name, "--with-healthcheck")
    os.execve(sys.executable, [sys.executable, "-P", "-m", "prefect", *command], dict(environment))
