"""How sweeps are found in MLflow, and which of them were stopped before their end. Loads neither torch nor MLflow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.registry.attempts import ENDED

if TYPE_CHECKING:
    from mlflow import MlflowClient

SWEEP, POINT, KEY = "sweep", "sweep.point", "sweep.key"
"""Tags of a sweep's runs: which sweep, which of its points, by what it is known."""
PARENT = "parent"
"""In the place of a point's number: the run above them."""


@dataclass(frozen=True)
class LeftSweep:
    """A sweep that has not come to its end: the same command goes on with it.

    Attributes:
        name: the sweep's.
        run_id: the run above its points.
        status: RUNNING, KILLED or FAILED.
        told: why it ended, as its run says; "" of one that does not.
    """

    name: str
    run_id: str
    status: str
    told: str


def left_sweeps(client: "MlflowClient", experiment_id: str) -> list[LeftSweep]:
    """The sweeps of an experiment that run, or were stopped. One whose every point failed has come to its end."""
    found = []
    for run in client.search_runs([experiment_id], f"tags.`{POINT}` = '{PARENT}'"):
        ended, status = run.data.tags.get(ENDED, ""), run.info.status
        if status == "RUNNING" or ended:
            found.append(LeftSweep(run.data.tags.get(SWEEP, ""), str(run.info.run_id), status, ended))
    return found
