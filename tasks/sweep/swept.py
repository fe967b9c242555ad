"""How a sweep ended, and the file that keeps it for whoever asks again. Reads and writes without torch and MLflow.

.dass/sweeps/ID/sweep.json is written last: a sweep that has one has everything else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dass.files import read_json, write_json
from tasks.sweep.pareto import front, pareto_table
from tasks.sweep.records import SWEEP, Record, sweep_id
from tasks.sweep.space import Point, Space
from tasks.workspace.folder import Workspace
from tasks.workspace.tables import Fitted

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Swept:
    """How a sweep ended.

    Attributes:
        name: the sweep's.
        done: every point and what became of it, by number.
        found: how many of them were finished before.
        objectives: figure -> "min" or "max".
        mlflow_run: the run above the points'.
        experiment: its experiment's name.
        shared: seconds of what was done once for many points, and not found done: stages, statistics.
    """

    name: str
    done: Sequence[tuple[Point, Record]]
    found: int
    objectives: dict[str, str]
    mlflow_run: str
    experiment: str
    shared: dict[str, float]

    @property
    def failed(self) -> list[tuple[Point, Record]]:
        return [(point, record) for point, record in self.done if record.failed is not None]

    @property
    def all_failed(self) -> bool:
        return len(self.failed) == len(self.done)

    @property
    def told(self) -> str:
        """How many points there are, and what became of them."""
        told = [f"{len(self.done)} points", f"{self.found} of them finished before"]
        return ", ".join([*told, *([f"{len(self.failed)} failed"] if self.failed else [])])

    @property
    def best(self) -> list[int]:
        """Numbers of the points that are beaten by none."""
        return front(self.done, self.objectives)

    def as_json(self) -> dict[str, Any]:
        points = [{"number": point.number, "values": point.values, **record.as_json()} for point, record in self.done]
        told = {"sweep": self.name, "mlflow_run": self.mlflow_run, "experiment": self.experiment}
        figures = {"found": self.found, "shared_seconds": self.shared, "objectives": self.objectives, "best": self.best}
        return {**told, **figures, "points": points}

    def table(self) -> Fitted:
        """The points for a terminal."""

        def build(width: int) -> "Table":
            return pareto_table(self.done, self.objectives, width)

        return Fitted(build)


@dataclass(frozen=True)
class Kept:
    """A sweep that ended, as its file tells.

    Attributes:
        swept: how, every point counted as found.
        store: the MLflow that has its runs, as `tasks.registry.clearing.store_named`.
        made_from: group of points -> digest of what their base, calibration and dense evaluation were made from.
    """

    swept: Swept
    store: str
    made_from: dict[str, str]


def write_sweep(ws: Workspace, space: Space, swept: Swept, store: str, made_from: Mapping[str, str]) -> None:
    """Note a sweep's points and what became of them, for `dass run --from-sweep` and the next time it is asked for."""
    write_json(
        ws.sweeps / swept.name / SWEEP,
        {
            "sweep": swept.name,
            "mlflow_run": swept.mlflow_run,
            "experiment": swept.experiment,
            "store": store,
            "made_from": dict(made_from),
            "shared_seconds": swept.shared,
            "asked": space.asked.model_dump(mode="json"),
            "points": [
                {
                    "number": point.number,
                    "values": point.values,
                    "settings": point.settings.model_dump(mode="json", by_alias=True, exclude={"register_", "promote"}),
                    "record": record.as_json(),
                }
                for point, record in swept.done
            ],
        },
    )


def kept_sweep(ws: Workspace, space: Space) -> Kept | None:
    """The end of the sweep that is asked for; None: it has not come to one, a point may be tried again, or points were
    compared by other figures."""
    path = ws.sweeps / sweep_id(space) / SWEEP
    if not path.is_file():
        return None
    told = read_json(path)
    done = [(space.point(each["number"], each["values"]), Record(**each["record"])) for each in told["points"]]
    objectives: dict[str, str] = {**space.asked.objectives}
    is_open = any(record.failed is not None and not record.for_good for _, record in done)
    if is_open or told["asked"]["objectives"] != objectives:
        return None
    swept = Swept(
        told["sweep"], done, len(done), objectives, told["mlflow_run"], told["experiment"], told["shared_seconds"]
    )
    return Kept(swept, told["store"], told["made_from"])
