"""The layer-wise engine: one buffer of hidden states, pushed through the decoder a layer at a time.

For each layer: (1) dense statistics on the calibration hidden states, (2) masks from the dense weights, (3) removed
weights become +0.0, (4) the pruned layer's outputs replace the buffer and are the next layer's inputs.

Axes: S windows, B windows of a batch, T tokens a window, H hidden, I intermediate.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dass.decoder import Decoder, LayerCall
from dass.errors import InputError, NumericalError
from dass.glu import GluMlp, find_glu
from dass.layer import LayerRunner
from dass.mask import check_divisible, keep_mask
from dass.pattern import Pattern, parse_pattern
from dass.score import DEFAULT_ALPHA, METHODS, ActivationNorms, Method, Projection, competition_axis, importance

ENGINE_VERSION = "1"
"""Changes whenever the same inputs may give other masks. Part of every fingerprint."""

ERROR_TOKENS = 4096
"""The relative output error is measured on the first windows that hold this many tokens (at least one window)."""

_CPU_BATCH_TOKENS = 4096  # beyond this, activations leave the cache and nothing gets faster
_CUDA_BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Plan:
    """What to remove: method, pattern (with its sparsity) and alpha. Made by `plan`."""

    method: Method
    pattern: Pattern
    alpha: float


@dataclass(frozen=True)
class LayerReport:
    """What pruning one layer did.

    Attributes:
        layer: index of the layer.
        sparsity: share of weights the mask removes, per projection.
        norm: min, median and max of ‖z_i‖₂ over the layer's intermediate neurons.
        relative_error: ‖y_pruned − y_dense‖ / ‖y_dense‖ of the MLP's output, on the first ERROR_TOKENS tokens.
        seconds: wall time.
    """

    layer: int
    sparsity: dict[Projection, float]
    norm: dict[str, float]
    relative_error: float
    seconds: float


@dataclass(frozen=True)
class LayerResult:
    """A pruned layer: its report, its norms, and its keep masks by full parameter name (bool, True = kept)."""

    report: LayerReport
    norms: ActivationNorms
    keep: dict[str, Tensor]


def plan(
    method: str = "dass", sparsity: float | None = None, pattern: str = "unstructured", alpha: float = DEFAULT_ALPHA
) -> Plan:
    """Check what is asked for.

    Raises:
        InputError: an unknown method, a pattern or sparsity that cannot be, or an alpha below 0 or not finite.
    """
    known = next((name for name in METHODS if name == method), None)
    if known is None:
        raise InputError(f"method is {method!r}: expected one of {', '.join(METHODS)}.")
    if not 0.0 <= alpha < float("inf"):
        raise InputError(f"alpha is {alpha}: expected a finite exponent of 0 or more, for example {DEFAULT_ALPHA}.")
    return Plan(known, parse_pattern(pattern, sparsity), alpha)


def check_fits(decoder: Decoder, what: Plan) -> None:
    """Refuse a model that the plan cannot prune, before any work.

    Raises:
        InputError: a layer without a GLU MLP, or an axis that N:M groups cannot tile.
    """
    for index in range(len(decoder)):
        intermediate, hidden = find_glu(decoder.structure(index)).sizes
        along = "intermediate size" if what.method == "dass" else "hidden size"
        size = intermediate if what.method == "dass" else hidden
        check_divisible(size, what.pattern, f"the {along} of {decoder.layer_name(index)}")
        check_divisible(intermediate, what.pattern, f"the intermediate size of {decoder.layer_name(index)}")


class LayerwisePruner:
    """Prunes a decoder one layer after the other. Call `prune_layer` or `replay_layer` for 0, 1, 2 ... in order.

    Memory: one buffer of hidden states (S, T, H), updated in place, and what one batch of one layer needs.
    """

    def __init__(self, decoder: Decoder, input_ids_ST: Tensor, what: Plan, batch_tokens: int | None = None) -> None:
        """Embed the calibration windows.

        Args:
            decoder: the model. Its layers change in place.
            input_ids_ST: calibration tokens, LongTensor (samples, length).
            what: what to remove.
            batch_tokens: tokens computed at once; None chooses by device. Part of the result in the last bit, because
                matrix products of different heights round differently.

        Raises:
            InputError: tokens of a wrong shape or type, or a model that `what` cannot prune.
        """
        if input_ids_ST.dim() != 2 or input_ids_ST.is_floating_point() or 0 in input_ids_ST.shape:
            raise InputError(
                f"input_ids is {tuple(input_ids_ST.shape)} {input_ids_ST.dtype}: "
                "expected whole numbers of shape (samples, length)."
            )
        check_fits(decoder, what)
        self._decoder, self._plan = decoder, what
        self._windows, length = input_ids_ST.shape
        if batch_tokens is None:
            batch_tokens = _CUDA_BATCH_TOKENS if decoder.device.type == "cuda" else _CPU_BATCH_TOKENS
        self._batch = max(1, batch_tokens // length)
        self._error_windows = max(1, ERROR_TOKENS // length)
        self._calls: dict[int, list[LayerCall]] = {}
        self._next_layer = 0
        with torch.no_grad(), decoder.embeddings():
            self._hidden_STH = self._embed(input_ids_ST)

    def prune_layer(self, index: int) -> LayerResult:
        """Collect, mask, set to zero and propagate one layer.

        Raises:
            NumericalError: the layer's activations are NaN or infinite.
        """
        began = time.perf_counter()
        with torch.no_grad(), self._decoder.layer(index) as layer:
            runner = self._runner(layer, index)
            norms, dense_outputs = self._collect(runner, index)
            keep = self._masks(runner.mlp, norms, index)
            apply_masks(runner.mlp.weights(), keep)
            error = self._propagate(runner, index, dense_outputs)
            parts = runner.mlp.split(keep)
        self._next_layer += 1
        report = LayerReport(
            layer=index,
            sparsity={name: 1.0 - part.sum().item() / part.numel() for name, part in parts.items()},
            norm={"min": norms.z_I.min().item(), "median": norms.z_I.median().item(), "max": norms.z_I.max().item()},
            relative_error=error,
            seconds=time.perf_counter() - began,
        )
        prefix = self._decoder.layer_name(index)
        return LayerResult(report, norms, {f"{prefix}.{name}": mask for name, mask in keep.items()})

    def replay_layer(self, index: int, keep: dict[str, Tensor]) -> None:
        """Apply masks found earlier and propagate: the buffer becomes what `prune_layer` left behind, bit for bit."""
        prefix = self._decoder.layer_name(index)
        with torch.no_grad(), self._decoder.layer(index) as layer:
            runner = self._runner(layer, index)
            if runner.splits:
                for rows, hidden, call in self._batches(index):
                    self._hidden_STH[rows] = runner.attention_half(hidden, call)
            apply_masks(runner.mlp.weights(), {name.removeprefix(f"{prefix}."): mask for name, mask in keep.items()})
            self._propagate(runner, index, [])
        self._next_layer += 1

    def _runner(self, layer: torch.nn.Module, index: int) -> LayerRunner:
        assert index == self._next_layer, "layers are pruned in order, each once"
        _, hidden, call = next(self._batches(index))
        return LayerRunner(layer, hidden, call)

    def _embed(self, input_ids_ST: Tensor) -> Tensor:
        buffer: Tensor | None = None
        for start in range(0, self._windows, self._batch):
            ids_BT = input_ids_ST[start : start + self._batch]
            hidden_BTH, self._calls[len(ids_BT)] = self._decoder.embed(ids_BT)
            if buffer is None:
                buffer = hidden_BTH.new_empty((self._windows, *hidden_BTH.shape[1:]))
            buffer[start : start + self._batch] = hidden_BTH
        assert buffer is not None
        return buffer

    def _batches(self, index: int) -> Iterator[tuple[slice, Tensor, LayerCall]]:
        for start in range(0, self._windows, self._batch):
            rows = slice(start, min(start + self._batch, self._windows))
            hidden_BTH = self._hidden_STH[rows]
            yield rows, hidden_BTH, self._calls[len(hidden_BTH)][index]

    def _collect(self, runner: LayerRunner, index: int) -> tuple[ActivationNorms, list[Tensor]]:
        """Dense statistics. Leaves mid_BTH in the buffer when the layer splits."""
        intermediate, hidden_size = runner.mlp.sizes
        device = self._hidden_STH.device
        squares_x_H = torch.zeros(hidden_size, dtype=torch.float64, device=device)
        squares_z_I = torch.zeros(intermediate, dtype=torch.float64, device=device)
        dense_outputs: list[Tensor] = []

        def observe(x_BTH: Tensor, z_BTI: Tensor) -> None:
            squares_x_H.add_(_sum_of_squares(x_BTH))
            squares_z_I.add_(_sum_of_squares(z_BTI))

        for rows, hidden_BTH, call in self._batches(index):
            measured = max(0, self._error_windows - rows.start)
            if runner.splits:
                mid_BTH = runner.attention_half(hidden_BTH, call)
                x_BTH = runner.mlp_input(mid_BTH)
                z_BTI = runner.intermediate(x_BTH)
                observe(x_BTH, z_BTI)
                self._hidden_STH[rows] = mid_BTH
                if measured:
                    dense_outputs.append(runner.mlp.down(z_BTI[:measured]))
            else:
                _, y_BTH = runner.whole(hidden_BTH, call, observe)
                if measured:
                    dense_outputs.append(y_BTH[:measured].clone())
        norms = ActivationNorms(squares_x_H.sqrt(), squares_z_I.sqrt())
        if not (norms.x_H.isfinite().all() and norms.z_I.isfinite().all()):
            raise NumericalError(
                f"{self._decoder.layer_name(index)}: activations are NaN or infinite on the calibration windows. "
                "Check the base checkpoint, or compute in a wider type (engine.dtype: float32)."
            )
        return norms, dense_outputs

    def _masks(self, mlp: GluMlp, norms: ActivationNorms, index: int) -> dict[str, Tensor]:
        what = self._plan
        stored = mlp.split(self._decoder.stored_weights(index, mlp.weight_names))
        keep: dict[Projection, Tensor] = {}
        for projection, weight_OC in stored.items():
            score_OC = importance(weight_OC, projection, norms, what.method, what.alpha)
            keep[projection] = keep_mask(
                score_OC, what.pattern, competition_axis(projection, what.method, what.pattern)
            )
        return mlp.join(keep)

    def _propagate(self, runner: LayerRunner, index: int, dense_outputs: list[Tensor]) -> float:
        """Push the buffer through the pruned layer; returns the relative output error over `dense_outputs`."""
        is_last = index == len(self._decoder) - 1
        difference = scale = 0.0
        for number, (rows, hidden_BTH, call) in enumerate(self._batches(index)):
            if is_last and number >= len(dense_outputs):
                break  # nothing follows the last layer
            if runner.splits:
                y_BTH = runner.mlp_output(runner.mlp_input(hidden_BTH))
                output_BTH = runner.add_residual(hidden_BTH, y_BTH)
            else:
                output_BTH, y_BTH = runner.whole(hidden_BTH, call)
            if number < len(dense_outputs):
                dense = dense_outputs[number].float()
                difference += (y_BTH[: len(dense)].float() - dense).double().square().sum().item()
                scale += dense.double().square().sum().item()
            self._hidden_STH[rows] = output_BTH
        return float((difference / scale) ** 0.5) if scale else 0.0


def apply_masks(weights: dict[str, Tensor], keep: dict[str, Tensor]) -> None:
    """Set removed weights to +0.0 in place; kept weights are not touched."""
    for name, mask in keep.items():
        weight = weights[name]
        weight.masked_fill_(mask.logical_not().to(weight.device), 0.0)


def _sum_of_squares(a_BTN: Tensor) -> Tensor:
    """Sum over windows and tokens: float32 inside a window, float64 across windows, so batches of any size agree."""
    a_BTN = a_BTN.reshape(-1, *a_BTN.shape[-2:])
    return a_BTN.float().square().sum(dim=1).double().sum(dim=0)
