"""One lock a workspace keeps two runs apart; whoever holds it may clear what a killed one left behind."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from dass.errors import InputError
from dass.files import clear_leftovers
from tasks.workspace.folder import Workspace

_held_here: set[Path] = set()


@contextmanager
def workspace_lock(ws: Workspace) -> Iterator[None]:
    """Hold the workspace: one run, or one stage of `dvc repro`, at a time. A killed holder lets go by itself.

    A process that holds it already may take it again.

    Raises:
        InputError: another process holds it; the message names it.
        OSError: the workspace cannot be written.
    """
    if holds(ws):
        yield
        return
    ws.private.mkdir(exist_ok=True)
    with (ws.private / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{ws.root} is held by another run ({_holder(file.read())}). Wait for it, or stop it."
            ) from None
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "command": " ".join(sys.argv), "since": since}, file)
        file.flush()
        _held_here.add(ws.root)
        try:
            yield
        finally:
            _held_here.discard(ws.root)


def holds(ws: Workspace) -> bool:
    """Whether this process holds the workspace."""
    return ws.root in _held_here


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']}, since {holder['since']}: {holder['command']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written its name yet
        return "process unknown, just started"


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
