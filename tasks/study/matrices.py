"""What `dass study sensitivity` measures: the whole model with one matrix of one layer pruned, and a cheap guess.

The guess is the matrix's own relative output error, from the Gram matrix of its inputs. It costs no pass but the one
that takes statistics; its rank correlation with the divergence says what it is worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dass.engine.dense import dense_statistics, make_from_statistics, save_statistics
from dass.engine.fits import check_fits
from dass.engine.layerwise import Wanted
from dass.engine.variants import Changed, Moved, Variant, Variants
from dass.errors import InputError
from dass.files import read_json
from dass.method.methods import PROJECTIONS, Projection
from dass.method.plan import DEFAULT_MIN_EXPERT_TOKENS, Plan
from dass.method.reconstruct import Equations
from dass.method.statistics import MlpStatistics
from dass.model.glu import find_glus, parameters_of
from tasks.calibration import MAIN_SET
from tasks.sources.tokens import digest_of_ids
from tasks.study.bench import Bench, Statistics, keep, layer_file
from tasks.study.cells import pattern_of
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings

Rows = list[dict[str, Any]]
Choice = Mapping[tuple[int, Projection], str]
"""Patterns by layer and projection; what is not named stays dense."""

_WITH_GRAMS = Wanted(gram_x=True, gram_z=True, min_expert_tokens=DEFAULT_MIN_EXPERT_TOKENS)


@dataclass(frozen=True)
class AskedMatrices:
    """What a study of sensitivity measures.

    Attributes:
        patterns: "50%", "2:4", "4:8".
        windows: calibration windows that matrices are judged by, and held-out windows for mixed allocations.
        totals: shares of all MLP weights that mixed allocations are to remove.
    """

    patterns: tuple[str, ...]
    windows: int
    totals: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError: an empty list, something twice, or a value out of range."""
        if not self.patterns:
            raise InputError("--patterns is empty: expected at least one.")
        for name, listed in (("patterns", self.patterns), ("totals", self.totals)):
            if len(set(listed)) != len(listed):
                raise InputError(f"--{name} holds something twice: {', '.join(map(str, listed))}.")
        most = max(pattern_of(pattern).sparsity for pattern in self.patterns)
        for total in self.totals:
            if not 0.0 < total <= most:
                raise InputError(f"--totals holds {total:g}: expected above 0, and up to {most:g} by these patterns.")

    def as_options(self) -> list[str]:
        """As the command line is given them."""
        totals = ["--totals", ",".join(f"{total:g}" for total in self.totals)] if self.totals else []
        return ["--patterns", ",".join(self.patterns), "--windows", str(self.windows), *totals]


class MatrixStudy:
    """A study of one workspace's base by the score that `prune` names, with the windows that `calibration` does.

    Attributes:
        bench: what it works with.
        told: what its records are told apart by, once it has measured.
    """

    def __init__(self, ws: Workspace, settings: Settings, asked: AskedMatrices) -> None:
        """Check what is asked for; nothing is computed yet.

        Raises:
            InputError: a stage has not run, a score that is none, or a pattern that the model cannot be pruned with.
        """
        method = settings.prune.method
        if method in ("auto", "sparsegpt"):
            raise InputError(
                f'prune.method is "{method}": a study of sensitivity wants one score for all matrices. Use dass, wanda '
                "or magnitude."
            )
        whole = settings.prune.plan
        # Only what chooses the masks counts here: kept weights stay as they are.
        self._plan = replace(
            whole,
            update="none",
            allocation="uniform",
            propagation="dense",
            refine="none",
            only=PROJECTIONS,
            skip_layers=(),
            validation_share=0.0,
            tune_norms=False,
        )
        if whole.layout == "transposable" and asked.patterns != ("2:4",):
            raise InputError('prune.layout is "transposable": expected --patterns 2:4, all it knows.')
        if whole.layout == "contraction" and any(pattern_of(each).is_unstructured for each in asked.patterns):
            raise InputError('prune.layout is "contraction": expected N:M patterns, only they have groups.')
        self.bench = Bench(ws, settings, asked.windows)
        self._asked, self._settings = asked, settings
        self.told: dict[str, Any] = {}
        for pattern in asked.patterns:
            check_fits(self.bench.decoder, self.plan(pattern, PROJECTIONS))

    def plan(self, pattern: str, only: Sequence[Projection]) -> Plan:
        """Some projections at one pattern."""
        return replace(self._plan, pattern=pattern_of(pattern), only=tuple(only))

    def measure(self) -> tuple[dict[str, Any], Rows, Statistics]:
        """Compute what is missing.

        Returns:
            What was studied, a row for each layer, projection and pattern, and the dense model's statistics.

        Raises:
            NumericalError: the model, or a pruned one, computes NaN or infinity.
        """
        bench, asked = self.bench, self._asked
        calibration = self._settings.calibration
        drawn = bench.draw(MAIN_SET, calibration.seed, calibration.samples + asked.windows)
        fitted_WL, judged_WL = drawn.windows_WL.split([calibration.samples, asked.windows])
        self.told = {"windows": digest_of_ids(fitted_WL), "plan": self._plan.named}
        guesses = self._guess(fitted_WL)
        statistics = bench.statistics([bench.statistics_folder(fitted_WL)])
        rows = self._judge(statistics, guesses, judged_WL)
        about = {
            **bench.about,
            "score": str(self._plan.score),
            "layout": self._plan.layout,
            "calibration_windows": len(fitted_WL),
            "calibration_length": fitted_WL.shape[1],
            "judged_windows": len(judged_WL),
            **asdict(asked),
        }
        whose = {"model": bench.model, "parameters": bench.parameters}
        return about, [{**whose, **row} for row in rows], statistics

    def _guess(self, windows_WL: torch.Tensor) -> list[Rows]:
        """For each layer a row a projection and pattern: the matrix's relative output error. Saves the statistics."""
        bench, folder = self.bench, self.bench.statistics_folder(windows_WL)
        patterns = list(self._asked.patterns)
        files = [bench.record({"guess": patterns, "layer": index, **self.told}) for index in range(len(bench.decoder))]
        done = [path.exists() and layer_file(folder, index).exists() for index, path in enumerate(files)]
        with progress_bar(len(files), "looking at the dense model", "layers") as advance:
            if not all(done):
                folder.mkdir(parents=True, exist_ok=True)
                walk = dense_statistics(bench.decoder, windows_WL, _WITH_GRAMS, buffering=bench.buffering)
                for index, seen in enumerate(walk):
                    norms = {name: replace(each, gram_x_HH=None, gram_z_II=None) for name, each in seen.items()}
                    save_statistics(norms, layer_file(folder, index))
                    keep(files[index], self._guesses_of(index, seen))
                    advance(1)
            else:
                advance(len(files))
        return [read_json(path) for path in files]

    def _guesses_of(self, index: int, seen: dict[str, MlpStatistics]) -> Rows:
        decoder = self.bench.decoder
        mlps = find_glus(decoder.structure(index))
        stored = decoder.stored_weights(index, parameters_of(mlps))
        rows: Rows = []
        for pattern in self._asked.patterns:
            what = self.plan(pattern, PROJECTIONS)
            pruned = make_from_statistics(decoder, index, seen, what, what.pattern, what.score).pruned
            for projection in PROJECTIONS:
                apart, power, weights, removed = 0.0, 0.0, 0, 0
                for mlp, each in zip(mlps, pruned, strict=True):
                    dense_OC, mask_OC = mlp.views(stored)[projection], each.keep[projection]
                    of = seen[f"{decoder.layer_name(index)}.{mlp.name}"]
                    gram_CC = of.gram_z_II if projection == "down_proj" else of.gram_x_HH
                    assert gram_CC is not None
                    equations, nothing = Equations(of.tokens, gram_CC), torch.zeros_like(dense_OC)
                    apart += equations.squared_error(dense_OC.where(mask_OC, nothing), dense_OC)
                    power += equations.squared_error(nothing, dense_OC)
                    weights += mask_OC.numel()
                    removed += mask_OC.numel() - int(mask_OC.count_nonzero())
                guess = (apart / power) ** 0.5 if power else 0.0
                rows.append(
                    {
                        "projection": projection,
                        "pattern": pattern,
                        "weights": weights,
                        "removed": removed,
                        "guess": guess,
                    }
                )
        return rows

    def _judge(self, statistics: Statistics, guesses: Sequence[Rows], windows_WL: torch.Tensor) -> Rows:
        """A row for each layer, projection and pattern; the layers in front of the pruned one are walked once."""
        bench, rows = self.bench, []
        judge: Variants | None = None  # opened when a layer is missing: it sends the windows through the dense model
        with progress_bar(len(guesses), "one matrix pruned, the whole model judged", "layers") as advance:
            for layer, of_layer in enumerate(guesses):
                named = [(row["projection"], row["pattern"]) for row in of_layer]
                path = bench.record({"sensitivity": named, "layer": layer, **self.told}, windows_WL)
                if not path.exists():
                    judge = judge or Variants(bench.decoder, windows_WL, bench.buffering)
                    variants = [
                        self.variant(statistics, {(layer, projection): pattern}) for projection, pattern in named
                    ]
                    keep(path, [asdict(moved) for moved in judge.judge(variants, first=layer)])
                rows += [
                    {"layer": layer, **row, **asdict(Moved(**moved))}
                    for row, moved in zip(of_layer, read_json(path), strict=True)
                ]
                advance(1)
        return rows

    def variant(self, statistics: Statistics, choice: Choice) -> Variant:
        """The base with these matrices pruned at these patterns."""
        decoder = self.bench.decoder

        def change(index: int) -> Changed | None:
            masks: dict[str, torch.Tensor] = {}
            for projection in PROJECTIONS:
                if (index, projection) not in choice:
                    continue
                what = self.plan(choice[index, projection], (projection,))
                made = make_from_statistics(decoder, index, statistics(index), what, what.pattern, what.score)
                for name, mask in made.keep.items():  # gate and up may share a parameter
                    masks[name] = masks[name] & mask if name in masks else mask
            return Changed(masks, {}) if masks else None

        return change
