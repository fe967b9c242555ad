"""The calibration windows on their way through a decoder: one buffer of hidden states, a layer at a time.

What a layer sees while it is dense is collected; then its outputs, dense or pruned, replace the buffer and are the next
layer's inputs.

Axes: S windows, B windows of a batch, T tokens a window, H hidden, I intermediate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from dass.engine.hidden import HiddenStates, choose_place, put_away
from dass.engine.hidden import Place as BufferPlace
from dass.engine.ranks import ALONE, Ranks
from dass.engine.windows import check_windows
from dass.errors import InputError, NumericalError, briefly
from dass.method.plan import Plan
from dass.method.statistics import MlpStatistics, StatisticsSum
from dass.model.calls import BatchCalls, LayerCall
from dass.model.decoder import Decoder
from dass.model.glu import GluMlp, find_glus
from dass.model.layer import LayerRunner
from dass.model.memory import is_out_of_memory

ERROR_TOKENS = 4096
"""The relative output error is measured on the first windows that hold this many tokens (at least one window)."""

_PROBE_TOKENS = 64
"""How a layer falls into halves is seen on so many tokens of a window."""

_CPU_BATCH_TOKENS = 1024  # beyond this, activations leave the cache and every product gets slower
_CUDA_BATCH_TOKENS = 32768
_CUDA_SHARE = 0.2  # of the card's memory that a batch's activations may take


@dataclass(frozen=True)
class Buffering:
    """How the calibration hidden states are held and computed.

    Attributes:
        batch_tokens: tokens computed at once; None chooses by device. Part of the result in the last bit, because
            matrix products of different heights round differently.
        hidden_states: where the buffer lies.
        folder: where a buffer on disk goes; None is the system's temporary folder.
    """

    batch_tokens: int | None = None
    hidden_states: BufferPlace = "auto"
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Raises InputError: a value of another kind."""
        tokens = self.batch_tokens
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
            raise InputError(
                f"batch_tokens is {briefly(tokens)}: expected 1 or more tokens, or None to choose by device."
            )
        if self.hidden_states not in get_args(BufferPlace):
            raise InputError(
                f"hidden_states is {briefly(self.hidden_states)}: expected one of {', '.join(get_args(BufferPlace))}."
            )


@dataclass(frozen=True)
class Wanted:
    """Which statistics to collect.

    Attributes:
        gram_x: also XᵀX of every MLP's input.
        gram_z: also ZᵀZ of the dense intermediate activations.
        min_expert_tokens: an expert routed fewer tokens is shown all of its layer's.
    """

    gram_x: bool
    gram_z: bool
    min_expert_tokens: int


def wanted_by(plan: Plan) -> Wanted:
    """What a plan needs to know of a dense layer."""
    return Wanted(plan.needs_gram_x, plan.needs_gram_z, plan.min_expert_tokens)


@dataclass(frozen=True)
class Collected:
    """What a layer's dense MLPs saw and made.

    Attributes:
        statistics: of each MLP.
        dense_outputs: y of the windows the output error is measured on, batch by batch.
    """

    statistics: list[MlpStatistics]
    dense_outputs: list[Tensor]


class LayerwisePass:
    """The calibration windows on their way through the decoder: a buffer of hidden states, this rank's share of it.

    Memory: one buffer of hidden states (S, T, H), updated in place, and what one batch of one layer needs.

    Attributes:
        windows: this rank's among all.
        fitted: how many of all windows, the first ones, a re-fit may be fitted to.
        holds_back: whether those are not all.
        at_once: how many windows are computed at once, at most.
    """

    def __init__(
        self,
        decoder: Decoder,
        input_ids_ST: Tensor,
        buffering: Buffering | None = None,
        ranks: Ranks = ALONE,
        held_back: int = 0,
    ) -> None:
        """Embed the calibration windows.

        Args:
            decoder: the model.
            input_ids_ST: calibration tokens, LongTensor (samples, length).
            buffering: how hidden states are held.
            ranks: the processes that share the windows.
            held_back: how many windows, the last ones, are held back from re-fits. They lie in batches of their own.

        Raises:
            InputError: tokens that `check_windows` refuses, layers that cannot be run one by one, or fewer batches than
                ranks.
        """
        check_windows(decoder, input_ids_ST)
        buffering = buffering or Buffering()
        windows, length = input_ids_ST.shape
        self.decoder, self.ranks = decoder, ranks
        tokens = buffering.batch_tokens or _batch_tokens(decoder)
        batch = self.at_once = max(1, tokens // length)
        self.fitted, self.holds_back = windows - held_back, held_back > 0
        cuts = [*range(0, self.fitted, batch), *range(self.fitted, windows, batch), windows]
        mine = ranks.share([slice(begin, end) for begin, end in pairwise(cuts)])
        self.windows = slice(mine[0].start, mine[-1].stop)
        self._rows = [slice(each.start - self.windows.start, each.stop - self.windows.start) for each in mine]
        self._error_windows = max(1, ERROR_TOKENS // length)
        self._calls = BatchCalls()
        self.layer = 0
        with memory_advice(), torch.no_grad(), decoder.embeddings():
            self.hidden = self._embed(input_ids_ST[self.windows], buffering)

    @property
    def carries_state(self) -> bool:
        """Whether the layers behind need more of those in front than hidden states."""
        return self._calls.carry_state

    @property
    def is_last(self) -> bool:
        """Whether nothing follows the layer that is due."""
        return self.layer == len(self.decoder) - 1

    def runner(self, layer: nn.Module) -> LayerRunner:
        """The due layer, ready to be run in halves."""
        first, *others = [
            (self.hidden.read(each.rows)[:, : each.tokens], each.calls[self.layer]) for each in self._probes
        ]
        runner = LayerRunner(layer, *first)
        for state_BTH, call in others:
            runner.confirm(state_BTH, call)
        return runner

    def batches(self, held_back: bool | None = None) -> Iterator[tuple[slice, Tensor, LayerCall, int]]:
        """This rank's batches: rows of the buffer, what lies there (B, T, H), the layer's call, and how many of these
        windows the output error is measured on.

        Args:
            held_back: only those that are held back from re-fits, or only the others; None gives all.
        """
        rows = [each for each in self._rows if held_back is None or self._is_held_back(each) == held_back]
        for some, state_BTH in self.hidden.batches(rows):
            measured = self._error_windows - self.windows.start - some.start
            windows = len(state_BTH)
            yield some, state_BTH, self._calls.of(some.start, self.layer), min(max(0, measured), windows)

    def advance(self, layer: nn.Module) -> None:
        """Push the buffer through the due layer as it is."""
        for rows, state_BTH, call, _ in self.batches():
            self.hidden.write(rows, call(layer, state_BTH))
        self.layer += 1

    def _is_held_back(self, rows: slice) -> bool:
        return bool(self.windows.start + rows.start >= self.fitted)

    def states(self) -> Iterator[tuple[slice, Tensor]]:
        """This rank's hidden states in front of the due layer, or behind the last: rows of the buffer, (B, T, H)."""
        return self.hidden.batches(self._rows)

    def collect(self, runner: LayerRunner, wanted: Wanted, *, advance: bool = False) -> Collected:
        """What the due layer's MLPs see, this layer still being dense.

        Leaves mid_BTH in the buffer when the layer splits; with `advance` the dense layer's outputs.

        Raises:
            NumericalError: an activation is NaN or infinite.
        """
        sums = [self._sum(mlp, wanted) for mlp in runner.mlps]
        dense_outputs: list[Tensor] = []

        def see(which: int, x: Tensor, z: Tensor) -> None:
            sums[which].add(x, z)

        in_one_go = advance and not any(mlp.is_expert for mlp in runner.mlps)  # a starved expert asks for a second look
        for rows, state_BTH, call, measured in self.batches():
            if runner.splits:
                state_BTH = runner.attention_half(state_BTH, call)
                self.hidden.write(rows, state_BTH)
            done = runner.observe(state_BTH, call, see, finish=in_one_go or measured > 0)
            if done is not None and in_one_go:
                self.hidden.write(rows, done[0])
            elif done is not None:
                dense_outputs.append(done[1][:measured].clone())
        for each in sums:
            each.merge(self.ranks.sum_)
        least = max(1, wanted.min_expert_tokens)  # an expert that saw nothing cannot be judged by it
        starved = [which for which, mlp in enumerate(runner.mlps) if mlp.is_expert and sums[which].tokens < least]
        if starved:
            self._collect_from_all_tokens(runner, starved, sums, wanted)
        statistics = [replace(each.result(), starved=which in starved) for which, each in enumerate(sums)]
        for mlp, seen in zip(runner.mlps, statistics, strict=True):
            if not seen.is_finite:
                raise NumericalError(
                    f"{self.decoder.layer_name(self.layer)}.{mlp.name}: activations are NaN or infinite on the "
                    "calibration windows. Check the base checkpoint, or compute in a wider type "
                    "(engine.dtype: float32)."
                )
        if advance and not in_one_go:
            self.propagate(runner, [])
        return Collected(statistics, dense_outputs)

    def propagate(self, runner: LayerRunner, dense_outputs: list[Tensor]) -> float:
        """Push the buffer through the due layer as it is now; returns the relative output error over `dense_outputs`.

        Expects in the buffer what `collect` left there.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.hidden.device)  # of the difference, of the output
        for number, (rows, state_BTH, call, _) in enumerate(self.batches()):
            if self.is_last and number >= len(dense_outputs):
                break  # nothing follows the last layer
            output_BTH, y_BTH = runner.advance(state_BTH, call)
            if number < len(dense_outputs):
                dense = dense_outputs[number].double()
                sums += torch.stack([(y_BTH[: len(dense)].double() - dense).square().sum(), dense.square().sum()])
            self.hidden.write(rows, output_BTH)
        self.ranks.sum_(sums)
        difference, scale = sums.tolist()
        return float((difference / scale) ** 0.5) if scale else 0.0

    def _collect_from_all_tokens(
        self, runner: LayerRunner, starved: list[int], sums: list[StatisticsSum], wanted: Wanted
    ) -> None:
        """What the router hardly ever sends to an expert says little about it: it is shown every token instead."""
        for which in starved:
            sums[which] = self._sum(runner.mlps[which], wanted)
        for _, state_BTH, call, _ in self.batches():
            runner.observe_all_tokens(state_BTH, call, starved, lambda which, x, z: sums[which].add(x, z))
        for which in starved:
            sums[which].merge(self.ranks.sum_)

    def _sum(self, mlp: GluMlp, wanted: Wanted) -> StatisticsSum:
        return StatisticsSum(mlp.sizes, self.hidden.device, gram_x=wanted.gram_x, gram_z=wanted.gram_z)

    def _embed(self, input_ids_ST: Tensor, buffering: Buffering) -> HiddenStates:
        buffer: HiddenStates | None = None
        for rows in self._rows:
            ids_BT = input_ids_ST[rows]
            hidden_BTH, calls = self.decoder.embed(ids_BT)
            if buffer is None:
                shape = (len(input_ids_ST), *hidden_BTH.shape[1:])
                buffer = HiddenStates(
                    shape, hidden_BTH.dtype, hidden_BTH.device, buffering.hidden_states, buffering.folder
                )
            buffer.write(rows, hidden_BTH)
            self._calls.add(rows.start, len(ids_BT), calls, _Kept(len(self._rows), buffer.place, buffering.folder))
        assert buffer is not None
        self._probes = self._first_tokens(input_ids_ST, buffer)
        return buffer

    def _first_tokens(self, input_ids_ST: Tensor, buffer: HiddenStates) -> list["_Probe"]:
        """What `runner` looks at: the first and the last batch; a few tokens of a window where that can be."""
        ends = list(dict.fromkeys([0, len(self._rows) - 1]))
        tokens = min(_PROBE_TOKENS, input_ids_ST.shape[1])
        calls = self._calls.all_of(self._rows[0].start)
        if self._calls.may_carry_state or not calls[0].layout.is_plain:
            return [_Probe(self._rows[end], buffer.shape[1], self._calls.all_of(self._rows[end].start)) for end in ends]
        windows = [slice(start, start + 1) for start in dict.fromkeys([0, buffer.shape[0] - 1])]
        return [_Probe(rows, tokens, self.decoder.embed(input_ids_ST[rows, :tokens])[1]) for rows in windows]


@dataclass(frozen=True)
class _Probe:
    """Some rows of the buffer, their first tokens, and how each layer is called with those."""

    rows: slice
    tokens: int
    calls: list[LayerCall]


class _Kept:
    """Puts what a batch's calls have of their own (per-layer embeddings, say) where there is room for all batches'."""

    def __init__(self, batches: int, hidden_states: BufferPlace, folder: Path | None) -> None:
        self._batches, self._hidden_states, self._folder = batches, hidden_states, folder
        self._storages: dict[int, tuple[Tensor, Tensor]] = {}  # one tensor may hold every layer's part

    def __call__(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        key = storage.data_ptr()
        if key not in self._storages:
            flat = torch.empty(0, dtype=value.dtype, device=value.device).set_(storage)
            place = self._hidden_states
            if place != "disk":
                place = choose_place(storage.nbytes() * self._batches, value.device, "auto")
            self._storages[key] = flat, put_away(flat, place, self._folder)
        kept = self._storages[key][1]
        return kept.as_strided(value.shape, value.stride(), value.storage_offset())


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turns running out of memory into advice.

    Raises:
        InputError: instead of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        refused: BaseException = error
    else:
        return
    raise InputError(
        f"One layer's work does not fit into memory ({str(refused).splitlines()[0]}). Keep hidden states elsewhere "
        "(engine.hidden_states: host or disk), compute fewer tokens at once (engine.batch_tokens), or use "
        "engine.device: cpu."
    ) from None


def _batch_tokens(decoder: Decoder) -> int:
    """Tokens computed at once. On CUDA by the card's whole memory, not by what is free: equal cards, equal bits."""
    if decoder.device.type != "cuda":
        return _CPU_BATCH_TOKENS
    total = torch.cuda.get_device_properties(decoder.device).total_memory
    widest = max(2 * mlp.sizes[0] + 8 * mlp.sizes[1] for mlp in find_glus(decoder.structure(0)))
    return max(1, min(_CUDA_BATCH_TOKENS, int(_CUDA_SHARE * total / (4 * widest))))
