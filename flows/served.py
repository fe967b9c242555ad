"""A run that a schedule started: it works in the schedule's workspace only, and ends when the schedule does."""

import os
from collections.abc import Sequence

from dass.errors import InputError
from tasks.workspace.folder import Workspace
from tasks.workspace.tied import end_with

_SCHEDULER = "DASS_SERVED_BY"
_WORKSPACE = "DASS_SERVED_WORKSPACE"  # prefect.yaml sets it, too


def schedule_here(ws: Workspace) -> None:
    """From now on the runs that this process starts take no other workspace, and end with it."""
    os.environ[_SCHEDULER] = str(os.getpid())
    os.environ[_WORKSPACE] = str(ws.root)


def obey_schedule(workspace: str, changes: Sequence[str] = ()) -> None:
    """In a run that a schedule started, before all else: end when the schedule's process does, even by kill -9.

    Args:
        workspace, changes: the run's parameters, which whoever speaks to Prefect's API may set.

    Raises:
        InputError: the workspace is not spelled as the schedule's own, or its settings are to be changed.
    """
    starter = os.environ.get(_SCHEDULER)
    if starter and int(starter) != os.getpid():
        end_with(int(starter))
    served = os.environ.get(_WORKSPACE)
    if served and workspace != served:
        raise InputError(f'workspace is "{workspace}": this schedule works in "{served}" only. Leave it as it was.')
    if served and changes:
        raise InputError(f"changes is {list(changes)}: this schedule runs params.yaml as it is. Leave it empty.")
