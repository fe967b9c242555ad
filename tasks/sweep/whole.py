"""A whole sweep: its points, what became of each, and what all of them come to."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from dass.errors import InputError
from dass.files import complete_file
from tasks.pruning.run import share_statistics
from tasks.sweep.figures import write_figures
from tasks.sweep.objectives import lacking
from tasks.sweep.page import page
from tasks.sweep.records import FIGURES, PAGE, Record, Records, group_of, sweep_id
from tasks.sweep.search import search_of
from tasks.sweep.space import Point, Space
from tasks.sweep.swept import Swept, write_sweep
from tasks.sweep.tracked import TrackedSweep
from tasks.sweep.work import failed, key_of
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Lease, take_lease
from tasks.workspace.lock import sweep_file
from tasks.workspace.settings import Sweep

logger = logging.getLogger("dass")


class WholeSweep:
    """One sweep while it runs. As a context it is the workspace's only one, and tells MLflow when it was stopped."""

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
        self._made_from: dict[str, str] = {}
        self._shared: dict[str, float] = {}
        self._tracked: TrackedSweep | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> "WholeSweep":
        """Raises InputError: another one is at work; the message names its process."""
        self._lease = take_lease(sweep_file(self._ws), f"Sweeping {self._ws.registry}")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._tracked is not None:
            self._tracked.stop(error, len(self._done))
        assert self._lease is not None
        self._lease.release()

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
            groups.setdefault(group_of(point.settings), []).append(point)
        return list(groups.values())

    def prepared(self, points: Sequence[Point], made_from: str) -> None:
        """Note what the base, calibration and dense evaluation of points that are alike were made from."""
        self._made_from[group_of(points[0].settings)] = made_from

    def took(self, what: str, seconds: float) -> None:
        """Note the seconds of something that was done for many points."""
        self._shared[what] = round(self._shared.get(what, 0.0) + seconds, 3)

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
        there = replace(prepared, point=self._records.work("statistics"))
        asked = [point.settings for point in points]
        began = time.perf_counter()
        passes = share_statistics(there, asked)
        if passes:
            self.took("statistics", time.perf_counter() - began)
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
        measured = [record.figures for _, record in done if record.figures is not None]
        if (told := lacking(objectives, measured)) is not None:
            logger.warning(told)
        tracked = self._tracked
        swept = Swept(self.name, done, self._found, objectives, tracked.parent, tracked.experiment_name, self._shared)
        folder = self._ws.sweeps / self.name
        write_figures(folder / FIGURES, self.name, done, objectives)
        with complete_file(folder / PAGE) as temporary:
            temporary.write_text(page(self.name, done, objectives), encoding="utf-8", newline="\n")
        counts = {"points": len(done), "points.failed": len(swept.failed), "points.best": len(swept.best)}
        tracked.end(
            {key: float(value) for key, value in counts.items()},
            [folder / PAGE, folder / FIGURES],
            failed=swept.all_failed,
        )
        write_sweep(self._ws, self._space, swept, tracked.store, self._made_from)
        return swept
