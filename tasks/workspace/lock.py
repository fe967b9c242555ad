"""One lock a workspace keeps two runs apart; whoever holds it may clear what a killed one left behind."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dass.files import asking_before_writes, clear_leftovers
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Holder, Lease, holder, take_lease

_held_here: dict[Path, Lease] = {}

logger = logging.getLogger("dass")


@contextmanager
def workspace_lock(ws: Workspace) -> Iterator[None]:
    """Hold the workspace: one run, or one stage of `dvc repro`, at a time. A killed holder lets go by itself, and so
    does one whose machine is gone (`tasks.workspace.lease`).

    A process that holds it already may take it again. While it is held, no file of the workspace is replaced once
    another run has taken it over.

    Raises:
        InputError: another process holds it; the message names it.
        LeaseLostError: another one has taken it over, and something was to be written.
        OSError: the workspace cannot be written.
    """
    if holds(ws):
        yield
        return
    ws.private.mkdir(exist_ok=True)
    lease = take_lease(lease_file(ws), str(ws.root), lambda: _tell_loss(ws.root))
    if lease.lost is not None:
        logger.warning("The run before was lost (%s): %s. Its finished layers are kept.", lease.reason, lease.lost.told)
    _held_here[ws.root] = lease
    try:
        with asking_before_writes(partial(_check, ws.root, lease)):
            yield
    finally:
        del _held_here[ws.root]
        lease.release()


def lease_file(ws: Workspace) -> Path:
    """The lease of whoever works in the workspace."""
    return ws.private / "lock"


def schedule_file(ws: Workspace) -> Path:
    """The lease of whoever keeps a schedule of it."""
    return ws.private / "schedule"


def sweep_file(ws: Workspace) -> Path:
    """The lease of whoever sweeps, in the workspace or in its checkout: both have the same points."""
    return ws.registry / ".dass" / "sweep"


def flow_run_file(ws: Workspace, flow_run: str) -> Path:
    """The lease of a flow run that a deployment started, whatever it works on; `flow_run` is Prefect's id of it."""
    return ws.private / "flow-runs" / flow_run


def dead_flow_runs(ws: Workspace, *, watch: bool = False) -> dict[str, Holder]:
    """The flow runs whose process is gone, and has not given its lease back: id -> who that was. Only looks.

    Args:
        ws: whose.
        watch: also those of other machines of which nothing is heard, for as long as they may be silent.
    """
    paths = sorted((ws.private / "flow-runs").glob("*"))
    with ThreadPoolExecutor() as watchers:  # each may be silent for as long
        found = zip(paths, watchers.map(partial(holder, watch=watch), paths), strict=True)
        return {path.name: held for path, held in found if held is not None and held.is_dead}


def holds(ws: Workspace) -> bool:
    """Whether this process holds the workspace."""
    return ws.root in _held_here


def lease_of(ws: Workspace) -> Lease | None:
    """The lease that this process holds the workspace by."""
    return _held_here.get(ws.root)


def check_held(ws: Workspace) -> None:
    """Before others' tools write for us, and where long work pauses.

    Raises:
        LeaseLostError: another run has taken over the workspace that this process held.
    """
    lease = lease_of(ws)
    if lease is not None:
        lease.check()


def _tell_loss(root: Path) -> None:
    logger.warning("%s was taken over by another run: this one stops before it writes anything more", root)


def _check(root: Path, lease: Lease, path: Path) -> None:
    if path.is_relative_to(root):
        lease.check()


def clear_workspace(ws: Workspace) -> None:
    """Undo what a killed run was writing. Call inside `workspace_lock`."""
    for folder in (
        ws.root,
        ws.base.parent,
        ws.metrics,
        ws.plots,
        ws.private,
        *ws.work.glob("*"),
        *ws.statistics.glob("*"),
    ):
        clear_leftovers(folder)
