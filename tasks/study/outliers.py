"""`dass study outliers`: what the activations look like, and whether dropping the input's norms costs anything.

The order: windows are drawn, the dense model is looked at once for every window, then the cells are judged some at a
time, then masks of different seeds are compared. A killed study goes on behind the last piece that was finished.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from typing import Any

from torch import Tensor

from dass.engine.dense import make_from_statistics
from dass.engine.fits import check_fits
from dass.engine.variants import Moved, Variant
from dass.files import read_json
from dass.measures.outliers import jaccard, outliers
from dass.method.methods import PROJECTIONS, Score
from tasks.calibration import MAIN_SET
from tasks.sources.calibrated_on import SELF
from tasks.study.bench import Bench, Drawn, Statistics, keep
from tasks.study.cells import PARTS, WANDA, Asked, Cell, plan_of
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings

TOGETHER = 8
"""Cells that are judged at once: the dense model's predictions are made once for all of them."""

Rows = list[dict[str, Any]]


class OutlierStudy:
    """A study of one workspace's base. `measure` computes what is missing."""

    def __init__(self, ws: Workspace, settings: Settings, asked: Asked) -> None:
        """Check what is asked for; nothing is computed yet.

        Raises:
            InputError: a stage has not run, a source that is unknown or not pinned, or a pattern that the model cannot
                be pruned with.
        """
        asked.check_sources(settings)
        self._bench = Bench(ws, settings, asked.windows)
        self._asked = asked
        for name in {MAIN_SET, *asked.sources} - {SELF}:
            self._bench.pin(name)
        for pattern in asked.patterns:
            check_fits(self._bench.decoder, plan_of(pattern, WANDA, PROJECTIONS))
            check_fits(self._bench.decoder, plan_of(pattern, Score("dass", 0.5), PROJECTIONS))

    def measure(self) -> tuple[dict[str, Any], dict[str, Rows]]:
        """Compute what is missing.

        Returns:
            What was studied, and a table each of "outliers", "ablation" and "stability".

        Raises:
            InputError: a text gives too few windows.
            NumericalError: the model, or a pruned one, computes NaN or infinity.
        """
        bench, asked = self._bench, self._asked
        texts_first = sorted(asked.drawings, key=lambda each: each[0] == SELF)  # which writes for minutes
        drawn = [bench.draw(*each) for each in texts_first]
        statistics = self._collect(drawn)
        ablation = self._judge(statistics)
        stability = self._compare_seeds(statistics)
        about = {
            **bench.about,
            "calibration_length": drawn[0].windows_WL.shape[1],
            "dense_loss": self._dense_loss(),
            **asdict(asked),
        }
        named = {"outliers": self._outliers(statistics), "ablation": ablation, "stability": stability}
        whose = {"model": bench.model, "parameters": bench.parameters}
        return about, {name: [{**whose, **row} for row in rows] for name, rows in named.items()}

    def _collect(self, drawn: Sequence[Drawn]) -> dict[tuple[str, int, int], Statistics]:
        """The dense model's statistics by source, seed and number of windows; each window is looked at once."""
        asked, bench, found = self._asked, self._bench, {}
        todo: list[Tensor] = []
        for each in drawn:
            sizes = asked.sizes_of(each.name, each.seed)
            todo += [each.windows_WL[begin:end] for begin, end in pairwise([0, *sizes])]
            for size, folders in bench.pieces(each, sizes).items():
                found[each.name, each.seed, size] = bench.statistics(folders)
        layers = len(bench.decoder)
        with progress_bar(sum(map(len, todo)) * layers, "looking at the dense model", "windows × layers") as advance:
            for windows_WL in todo:
                count = len(windows_WL)
                bench.collect(windows_WL, lambda more, count=count: advance(more * count))  # type: ignore[misc]
        return found

    def _judge(self, statistics: dict[tuple[str, int, int], Statistics]) -> Rows:
        """A row for each cell."""
        cells = self._asked.cells
        files = {cell: self._bench.record({"cell": cell.as_row()}) for cell in cells}
        missing = [cell for cell in cells if not files[cell].exists()]

        def variant(cell: Cell) -> Variant:
            what = cell.plan
            key = (cell.source or MAIN_SET, *self._any_windows(cell))
            return self._bench.variant(statistics[key], lambda _: what)

        with progress_bar(len(cells), "pruned and judged", "cells") as advance:
            advance(len(cells) - len(missing))
            for start in range(0, len(missing), TOGETHER):
                some = missing[start : start + TOGETHER]
                for cell, moved in zip(some, self._bench.judge.judge([variant(cell) for cell in some]), strict=True):
                    keep(files[cell], asdict(moved))
                advance(len(some))
        return [{**cell.as_row(), **asdict(Moved(**read_json(files[cell])))} for cell in cells]

    def _any_windows(self, cell: Cell) -> tuple[int, int]:
        """Magnitude looks at no statistics, but the engine hands them to every method: any will do."""
        seed = self._asked.seeds[0] if cell.seed is None else cell.seed
        return seed, self._asked.samples if cell.samples is None else cell.samples

    def _dense_loss(self) -> float:
        path = self._bench.record({"dense": True})
        if not path.exists():
            keep(path, self._bench.judge.dense_loss)
        loss: float = read_json(path)
        return loss

    def _outliers(self, statistics: dict[tuple[str, int, int], Statistics]) -> Rows:
        """A row for the input and the intermediate activation of each MLP, for every source and seed."""
        rows: Rows = []
        for (source, seed, samples), of_layer in statistics.items():
            if samples != self._asked.samples:
                continue
            for index in range(len(self._bench.decoder)):
                for name, seen in of_layer(index).items():
                    for activation, norms in (("input", seen.norms.x_H), ("intermediate", seen.norms.z_I)):
                        found = outliers(norms)
                        rows.append(
                            {
                                "source": source,
                                "seed": seed,
                                "samples": samples,
                                "layer": index,
                                "mlp": name,
                                "activation": activation,
                                "channels": found.channels,
                                **{f"beyond_{multiple:g}": share for multiple, share in found.beyond.items()},
                                "kurtosis": found.kurtosis,
                                "top_share": found.top_share,
                                "largest": found.largest,
                            }
                        )
        return rows

    def _compare_seeds(self, statistics: dict[tuple[str, int, int], Statistics]) -> Rows:
        """A row for each two seeds, score, pattern and part: what their masks have in common."""
        asked = self._asked
        pairs = list(combinations(asked.seeds, 2))
        wanted = [
            (pattern, part, score, samples)
            for pattern in asked.patterns
            for part in PARTS
            for score in (asked.scores if part == "gate+up" else [WANDA])
            for samples in (sorted({asked.samples, *asked.sizes}) if pattern == asked.patterns[0] else [asked.samples])
        ]
        rows: Rows = []
        with progress_bar(len(wanted), "masks of different seeds compared", "settings") as advance:
            for pattern, part, score, samples in wanted:
                seeds = asked.seeds if samples == asked.samples else asked.side
                some = [pair for pair in pairs if set(pair) <= set(seeds)]
                told = {"pattern": pattern, "part": part, "score": str(score), "samples": samples}
                path = self._bench.record({"stability": told, "seeds": list(seeds)})
                if not path.exists():
                    of_seed = {seed: statistics[MAIN_SET, seed, samples] for seed in seeds}
                    keep(path, self._in_common(pattern, part, score, of_seed, some))
                for (one, other), value in zip(some, read_json(path), strict=True):
                    rows.append({**told, "seed": one, "other_seed": other, "jaccard": value})
                advance(1)
        return rows

    def _in_common(
        self, pattern: str, part: str, score: Score, of_seed: dict[int, Statistics], pairs: list[tuple[int, int]]
    ) -> list[float]:
        """Mean over layers and pruned parameters of the Jaccard index of two seeds' masks, for each two."""
        what, decoder = plan_of(pattern, score, PARTS[part]), self._bench.decoder
        sums, matrices = [0.0] * len(pairs), 0
        for index in range(len(decoder)):
            masks = {
                seed: make_from_statistics(decoder, index, seen(index), what, what.pattern, score).pruned
                for seed, seen in of_seed.items()
            }
            for mlp in range(len(next(iter(masks.values()), []))):
                for projection in what.only:
                    matrices += 1
                    for number, (one, other) in enumerate(pairs):
                        sums[number] += jaccard(*(masks[seed][mlp].keep[projection] for seed in (one, other)))
        return [value / matrices for value in sums]
