"""A whole sweep: its points, what became of each, and what all of them come to."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import complete_file, digest_of
from tasks.pruning.run import share_statistics
from tasks.sweep.figures import write_figures
from tasks.sweep.page import page
from tasks.sweep.pareto import front, pareto_table
from tasks.sweep.records import FIGURES, PAGE, Record, Records, sweep_id, write_sweep
from tasks.sweep.search import search_of
from tasks.sweep.space import Point, Space
from tasks.sweep.tracked import TrackedSweep
from tasks.sweep.work import failed, key_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Sweep
from tasks.workspace.tables import Fitted

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger("dass")


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
    """

    name: str
    done: Sequence[tuple[Point, Record]]
    found: int
    objectives: dict[str, str]
    mlflow_run: str
    experiment: str

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
        return {**told, "found": self.found, "objectives": self.objectives, "best": self.best, "points": points}

    def table(self) -> Fitted:
        """The points for a terminal."""

        def build(width: int) -> "Table":
            return pareto_table(self.done, self.objectives, width)

        return Fitted(build)


class WholeSweep:
    """One sweep while it runs."""

    def __init__(self, ws: Workspace, changes: Sequence[str]) -> None:
        """Read and check what is asked for.

        Raises:
            InputError: as `Space.read` and `search_of`.
        """
        self._ws = ws
        self._space = Space.read(ws, changes)
        self._search = search_of(self._space)
        self.name = sweep_id(self._space)
        self._records = Records(ws)
        self._done: dict[int, tuple[Point, Record]] = {}
        self._found = 0
        self._tracked: TrackedSweep | None = None

    @property
    def asked(self) -> Sweep:
        """Section `sweep`, with what was changed."""
        return self._space.asked

    def batches(self) -> Iterator[list[Point]]:
        """Points that may be worked on at the same time; the search hears of one batch before it gives the next."""
        for points in self._search.batches():
            yield points
            for point in points:
                record = self._done[point.number][1]
                self._search.tell(point, record.figures)

    def alike(self, points: Sequence[Point]) -> list[list[Point]]:
        """Points together that have the same base, calibration and dense evaluation."""
        groups: dict[str, list[Point]] = {}
        for point in points:
            asked = point.settings.model_dump(mode="json", include={"sources", "calibration", "engine", "evaluate"})
            groups.setdefault(digest_of(asked), []).append(point)
        return list(groups.values())

    def unfinished(self, prepared: Workspace, points: Sequence[Point]) -> list[Point]:
        """Those that have no record yet; the others are noted."""
        left = []
        for point in points:
            record = self._records.find(key_of(prepared, point.settings))
            if record is None:
                left.append(point)
            else:
                self._found += 1
                self.note(point, record)
        return left

    def give_up(self, points: Sequence[Point], error: Exception) -> None:
        """Note points whose base, calibration or dense evaluation cannot be made."""
        for point in points:
            self.note(point, failed("", error))

    def share_statistics(self, prepared: Workspace, points: Sequence[Point]) -> None:
        """Collect what points with `propagation: dense` have in common, in one pass."""
        there = Workspace(prepared.root, prepared.once, self._records.work("statistics"))
        asked = [point.settings for point in points]
        passes = share_statistics(there, asked)
        dense = sum(each.prune.propagation == "dense" for each in asked)
        if dense:
            logger.info("statistics: %d points share %d passes through the dense model", dense, passes)
        if dense < len(asked) > 1:
            logger.info(
                "statistics: %d points take their own, behind pruned layers (prune.propagation=dense shares them)",
                len(asked) - dense,
            )

    def note(self, point: Point, record: Record) -> None:
        """Keep what became of a point, and give it its run in MLflow."""
        self._done[point.number] = point, record
        if self._tracked is None:
            self._tracked = TrackedSweep(self._ws, point.settings, self.name, self._space)
        self._tracked.note(point, record)
        if record.failed is not None:
            logger.warning(f"{point.told} failed: {record.failed}")

    def end(self) -> Swept:
        """Write what all points come to."""
        done = [self._done[number] for number in sorted(self._done)]
        if self._tracked is None:
            raise InputError(f"No point of the {self._space.asked.search} search can be used: name other values.")
        objectives: dict[str, str] = {**self._space.asked.objectives}
        swept = Swept(self.name, done, self._found, objectives, self._tracked.parent, self._tracked.experiment_name)
        write_sweep(self._ws, self.name, self._space, done, self._tracked.parent)
        folder = self._ws.sweeps / self.name
        write_figures(folder / FIGURES, self.name, done, objectives)
        with complete_file(folder / PAGE) as temporary:
            temporary.write_text(page(self.name, done, objectives), encoding="utf-8", newline="\n")
        counts = {"points": len(done), "points.failed": len(swept.failed), "points.best": len(swept.best)}
        self._tracked.end(
            {key: float(value) for key, value in counts.items()},
            [folder / PAGE, folder / FIGURES],
            failed=swept.all_failed,
        )
        return swept
