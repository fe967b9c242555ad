"""A pruning run over a checkpoint on disk that can be killed at any moment and gone on with.

A finished layer is a mask file in the run's folder, complete or absent, with its statistics and its updated weights
beside it. A restart applies finished layers and only pushes the hidden states through them, or starts from hidden
states saved on the way, and ends in the bytes of an undisturbed run.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.engine.choice import CHOICE, Choice
from dass.engine.dense import (
    allocate,
    are_collected,
    collect_statistics,
    dense_statistics,
    layer_outliers,
    load_statistics,
    prune_from_statistics,
    statistics_file,
)
from dass.engine.fits import check_fits
from dass.engine.layer_report import LayerReport, LayerResult
from dass.engine.layerwise import Buffering, Wanted, wanted_by
from dass.engine.pruner import LayerwisePruner, dense_beside
from dass.engine.ranks import ALONE, Ranks
from dass.engine.search import Search
from dass.engine.sensitive import sensitive_patterns, sensitivities
from dass.engine.windows import check_windows, hold_back
from dass.errors import InputError, briefly
from dass.files import canonical_json, complete_file, read_json, write_json
from dass.masks.mask_file import MaskFile, MaskFiles, save_masks
from dass.masks.updates import Updates, save_updates
from dass.method.methods import Score
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.statistics import MlpStatistics
from dass.model.streaming import StreamedDecoder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerRecord:
    """A layer's report, and whether it was finished by an earlier run."""

    report: LayerReport
    resumed: bool


class CheckpointRun:
    """Prunes a streamed model layer by layer into a folder. `layer` must be called for 0, 1, 2 ... in order.

    The caller guards the folder: it must belong to this model, these tokens, this plan and this way of computing, and
    to no other (a fingerprint of them in its name will do).

    Attributes:
        folder: finished layers.
        layer_count: number of decoder layers.
        finished: how many layers were finished when the run was opened.
    """

    def __init__(
        self,
        decoder: StreamedDecoder,
        input_ids_ST: Tensor,
        plan: Plan,
        folder: Path,
        *,
        statistics: Path | None = None,
        buffering: Buffering | None = None,
        ranks: Ranks = ALONE,
        checkpoint_every: int | None = None,
    ) -> None:
        """Check that the plan fits the model; nothing is computed yet.

        Args:
            decoder: the model.
            input_ids_ST: calibration tokens, LongTensor (samples, length).
            plan: what to remove.
            folder: this run's folder; made if missing.
            statistics: folder of dense statistics, for `propagation: dense`; None puts them into `folder`.
            buffering: how hidden states are held.
            ranks: the processes that share the windows; rank 0 writes.
            checkpoint_every: save the hidden states behind every so many layers; None never does.

        Raises:
            InputError: a model that the plan cannot prune, or windows that it cannot read.
        """
        if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
            raise InputError(f"checkpoint_every is {briefly(checkpoint_every)}: expected 1 or more layers, or None.")
        check_fits(decoder, plan)
        check_windows(decoder, input_ids_ST)
        self.folder, self.layer_count = folder, len(decoder)
        self._decoder, self._plan, self._ranks = decoder, plan, ranks
        self._input_ids_ST, self._held_back_WT = hold_back(input_ids_ST, plan)
        self._statistics = statistics or folder / "dense"
        self._buffering, self._checkpoint_every = buffering or Buffering(), checkpoint_every
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = next(
            (index for index in range(self.layer_count) if not self.mask_file(index).exists()), self.layer_count
        )
        self._start, self._saved = self._saved_hidden()
        ranks.wait()  # nobody writes before everybody has looked

    def mask_file(self, index: int) -> Path:
        """Masks and report of a layer; its presence says that the layer is finished."""
        return self.folder / f"layer_{index:03d}.safetensors"

    def norms_file(self, index: int) -> Path:
        """Norms of a layer's MLPs."""
        return self.folder / f"norms_{index:03d}.safetensors"

    def updates_file(self, index: int) -> Path:
        """New values of a layer's kept weights; absent when they keep their values."""
        return self.folder / f"updates_{index:03d}.safetensors"

    @property
    def choice_file(self) -> Path:
        """What `auto` has chosen, once it has."""
        return self.folder / "auto" / CHOICE

    def layer(self, index: int) -> LayerRecord:
        """Prune one layer, or take it from an earlier run.

        Raises:
            NumericalError: its activations are NaN or infinite.
            InputError: it does not fit into memory.
        """
        dense = self._plan.propagation == "dense"
        if index < self.finished:
            if self.finished < self.layer_count and not dense and index >= self._start:
                self._replay(index)
            return LayerRecord(read_report(self.mask_file(index)), resumed=True)
        if dense:
            statistics = self._load_dense(index)
            result = prune_from_statistics(
                self._decoder, index, statistics, self._plan, self._patterns[index], self._scores[index]
            )
        else:
            result = self._pruner.prune_layer(index)
        if self._ranks.is_first:
            self._write(index, result)
        if not dense:
            self._save_hidden(index + 1)
        return LayerRecord(result.report, resumed=False)

    @property
    def masks(self) -> MaskFiles:
        """Masks of the finished layers, by stored tensor name."""
        return MaskFiles(self._finished(self.mask_file))

    @property
    def updates(self) -> Updates:
        """New values of the kept weights of the finished layers, by stored tensor name."""
        return Updates(list(self._finished(self.updates_file)))

    def _finished(self, file: Callable[[int], Path]) -> Iterator[Path]:
        return (path for index in range(self.layer_count) if (path := file(index)).exists())

    def norms(self) -> dict[str, Tensor]:
        """Norms of the finished layers' MLPs: "<mlp's full name>.norm_x" (H,) and ".norm_z" (I,), float64."""
        return {name: norm for path in self._finished(self.norms_file) for name, norm in load_file(path).items()}

    def reports(self) -> Iterator[LayerReport]:
        """Reports of the finished layers, in order."""
        return finished_reports(self.folder)

    def close(self) -> None:
        """Give back memory and temporary files; finished layers stay."""
        if "_pruner" in self.__dict__:  # it was opened
            self._pruner.close()

    @cached_property
    def _pruner(self) -> LayerwisePruner:
        """Opened when the first layer wants computing: embeds the tokens, or reads hidden states saved on the way."""
        pruner = LayerwisePruner(
            self._decoder,
            self._input_ids_ST,
            self._plan,
            patterns=self._patterns,
            scores=self._scores,
            buffering=self._buffering,
            ranks=self._ranks,
        )
        if self._saved is not None:
            pruner.resume_at(self._start, self._saved)
        return pruner

    @cached_property
    def choice(self) -> Choice | None:
        """What `auto` has chosen, which takes long the first time; None: the plan names one method.

        Raises:
            NumericalError: activations, or a proposal's predictions, are NaN or infinite.
            InputError: it does not fit into memory.
        """
        if self._plan.method != "auto":
            return None
        search = Search(
            self._decoder,
            self._input_ids_ST,
            self._held_back_WT,
            self._plan,
            self._patterns,
            self.choice_file.parent,
            statistics=self._load_dense if self._plan.propagation == "dense" else None,
            buffering=self._buffering,
            ranks=self._ranks,
        )
        return search.choose()

    @cached_property
    def _scores(self) -> list[Score]:
        return [self._plan.score] * self.layer_count if self.choice is None else self.choice.scores

    @cached_property
    def _patterns(self) -> list[Pattern]:
        if self._plan.allocation == "uniform":
            return [self._plan.pattern] * self.layer_count
        if self._plan.allocation == "sensitivity":
            return self._sensitive_patterns()
        path = self.folder / "outliers.json"
        if path.exists():
            outliers: list[float] = read_json(path)
        elif self._plan.propagation == "dense":
            outliers = [
                layer_outliers(self._decoder, index, self._load_dense(index)) for index in range(self.layer_count)
            ]
        else:
            norms_only = Wanted(gram_x=False, gram_z=False, min_expert_tokens=self._plan.min_expert_tokens)
            outliers = [
                layer_outliers(self._decoder, index, seen) for index, seen in enumerate(self._pass_dense(norms_only))
            ]
        self._ranks.wait()
        if self._ranks.is_first and not path.exists():
            write_json(path, outliers)
        return allocate(self._decoder, outliers, self._plan)

    def _sensitive_patterns(self) -> list[Pattern]:
        path = self.folder / "sensitivity.json"
        if path.exists():
            costs: list[list[float]] = read_json(path)
        else:
            costs = sensitivities(
                self._decoder, self._dense_norms(), self._held_back_WT, self._plan, self._buffering, self._ranks
            )
        self._ranks.wait()
        if self._ranks.is_first and not path.exists():
            write_json(path, costs)
        return sensitive_patterns(self._decoder, costs, self._plan)

    def _dense_norms(self) -> Callable[[int], dict[str, MlpStatistics]]:
        if self._plan.propagation == "dense":
            return self._load_dense
        norms_only = Wanted(gram_x=False, gram_z=False, min_expert_tokens=self._plan.min_expert_tokens)
        collected = list(self._pass_dense(norms_only))
        return lambda index: collected[index]

    @cached_property
    def _dense(self) -> Path:
        """The folder of dense statistics; collected in one pass when any is missing."""
        complete = are_collected(self._statistics, self.layer_count)
        self._ranks.wait()
        if not complete:
            self.collect({self._statistics: wanted_by(self._plan)})
            self._ranks.wait()
        return self._statistics

    def collect(self, folders: Mapping[Path, Wanted]) -> None:
        """Collect dense statistics for this run and others on the same windows, in one pass.

        Args:
            folders: as `collect_statistics`.

        Raises:
            InputError, NumericalError: as `collect_statistics`.
        """
        collect_statistics(self._decoder, self._input_ids_ST, folders, buffering=self._buffering, ranks=self._ranks)

    def _load_dense(self, index: int) -> dict[str, MlpStatistics]:
        return load_statistics(statistics_file(self._dense, index), self._decoder.device)

    def _pass_dense(self, wanted: Wanted) -> Iterator[dict[str, MlpStatistics]]:
        return dense_statistics(self._decoder, self._input_ids_ST, wanted, buffering=self._buffering, ranks=self._ranks)

    def _replay(self, index: int) -> None:
        masks = MaskFile(self.mask_file(index))
        updates = Updates([path for path in [self.updates_file(index)] if path.exists()])
        weights = {name: updates.weight(name, masks.get(name)) for name in updates}
        self._pruner.replay_layer(
            index, self._decoder.from_stored(index, masks), self._decoder.from_stored(index, weights)
        )

    def _write(self, index: int, result: LayerResult) -> None:
        keep = self._decoder.to_stored(result.keep)
        with complete_file(self.norms_file(index)) as temporary:
            save_file(
                {
                    f"{name}.{part}": norm.cpu()
                    for name, seen in result.statistics.items()
                    for part, norm in (("norm_x", seen.norms.x_H), ("norm_z", seen.norms.z_I))
                },
                temporary,
            )
        if result.weights:
            with complete_file(self.updates_file(index)) as temporary:
                save_updates(self._decoder.to_stored(result.weights), keep, temporary)
        with complete_file(self.mask_file(index)) as temporary:  # last: it says that the layer is finished
            save_masks(keep, temporary, {"report": canonical_json(asdict(result.report))})

    def _save_hidden(self, layer: int) -> None:
        """Every so many layers: the inputs of `layer`, after which the earlier ones are of no more use."""
        if not self._checkpoint_every or (layer % self._checkpoint_every and layer != self.layer_count):
            return
        if layer < self.layer_count and self._pruner.carries_state:
            # Keys and values that later layers take from earlier ones are not hidden states: those layers are replayed.
            _LOG.info("Layer %d needs more than hidden states of those in front: none are kept here.", layer)
            return
        if layer < self.layer_count:
            self._pruner.save_hidden(self._hidden_file(layer, self._ranks.rank))
        self._ranks.wait()
        here = self._hidden_file(layer, self._ranks.rank)
        # Those of the dense model last: while a file of the other name is there, so is one of theirs.
        earlier = sorted(
            self.folder.glob(f"*hidden_*_of_{self._ranks.size}_{self._ranks.rank}.safetensors"), reverse=True
        )
        for path in earlier:
            if path not in (here, dense_beside(here)):
                path.unlink()

    def _saved_hidden(self) -> tuple[int, Path | None]:
        """The last layer whose inputs every rank has saved, and this rank's file; (0, None) when there is none."""
        for layer in range(self.finished, 0, -1):
            files = [self._hidden_file(layer, rank) for rank in range(self._ranks.size)]
            if all(path.exists() for path in files):
                return layer, files[self._ranks.rank]
        return 0, None

    def _hidden_file(self, layer: int, rank: int) -> Path:
        return self.folder / f"hidden_{layer:03d}_of_{self._ranks.size}_{rank}.safetensors"


def finished_reports(folder: Path) -> Iterator[LayerReport]:
    """Reports of the layers that are finished in a run's folder, in order."""
    return (read_report(path) for path in sorted(folder.glob("layer_*.safetensors")))


def read_report(path: Path) -> LayerReport:
    """The report in a finished layer's mask file."""
    return LayerReport(**json.loads(MaskFile(path).metadata["report"]))
