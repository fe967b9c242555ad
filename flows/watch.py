"""What becomes of a schedule's runs, as Prefect hears of it: told once when one starts and once when it ends.

Whoever keeps the schedule asks, and not the run itself, which cannot tell that it was killed.
"""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

VERSION_TAG = "version "
"""How the tag of a flow run begins that says which version it registered."""

_EVERY_SECONDS = 2.0
_LOOKED_AT = 50  # runs, the newest first

logger = logging.getLogger("dass")


class Watch:
    """The runs of one deployment.

    Args:
        deployment: its name.
        tell: called with {"event": "started", "run", "due", "at"} and {"event": "ended", "run", "state", "message",
            "version", "seconds"}; times are aware datetimes.
        read: the deployment's runs that have begun, the newest first.
    """

    def __init__(
        self,
        deployment: str,
        tell: Callable[[dict[str, Any]], None],
        read: "Callable[[str], list[FlowRun]] | None" = None,
    ) -> None:
        self._deployment, self._tell, self._read = deployment, tell, read or _runs_of
        self._told: dict[UUID, bool] = {}  # whether its end was told, too
        self._has_looked = False
        self._ended = threading.Event()

    def __enter__(self) -> "Watch":
        self._look_quietly()
        self._thread = threading.Thread(target=self._keep_looking, name="watches the schedule", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more: a run that ended with the schedule is told, too."""
        self._ended.set()
        self._thread.join(2 * _EVERY_SECONDS)
        self._look_quietly()

    def look(self) -> None:
        """Ask once, and tell what is new. What was over at the first look is not: no clock is asked."""
        runs, is_first = self._read(self._deployment), not self._has_looked
        self._has_looked = True
        for run in reversed(runs):
            state = run.state
            is_over = state is not None and state.is_final()
            if is_first and is_over:
                self._told[run.id] = True
            if self._told.get(run.id):
                continue
            if run.id not in self._told and run.start_time is not None:
                self._told[run.id] = False
                due = run.expected_start_time or run.start_time
                self._tell({"event": "started", "run": run.name, "due": due, "at": run.start_time})
            if is_over:
                assert state is not None
                self._told[run.id] = True
                self._tell(
                    {
                        "event": "ended",
                        "run": run.name,
                        "state": state.name,
                        "message": state.message,
                        "version": _version(run),
                        "seconds": round(run.total_run_time.total_seconds(), 1),
                    }
                )

    def _keep_looking(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._look_quietly()

    def _look_quietly(self) -> None:
        try:
            self.look()
        except Exception as error:  # the server may be gone for a moment: what is new is told later
            logger.debug("Prefect does not say what became of the schedule's runs: %s", error)


def _version(run: "FlowRun") -> str | None:
    return next((tag.removeprefix(VERSION_TAG) for tag in run.tags if tag.startswith(VERSION_TAG)), None)


def _runs_of(deployment: str) -> "list[FlowRun]":
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType
    from prefect.client.schemas.sorting import FlowRunSort

    seen_as = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, *TERMINAL_STATES]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
            flow_run_filter=FlowRunFilter(state=seen_as),
            sort=FlowRunSort.START_TIME_DESC,
            limit=_LOOKED_AT,
        )
