"""The published layer-wise procedure written the plain way: what the engine is measured against.

The model is in memory in float32. Windows go through one at a time, a hook on every linear sums its inputs, every layer
runs in full twice (to collect, and to propagate after pruning), and each mask comes from a full sort.
Written from the method's definition; the one thing taken from `dass` is SparseGPT's treatment of a single matrix.

Axes: S windows, T tokens a window, H hidden, I intermediate, O out_features, C in_features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dass.method.pattern import Pattern
from dass.method.sparsegpt import sparsegpt

_PRUNED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_DASS_EXPONENT = 0.25  # of the squared norm in DaSS's gate and up scores: alpha 0.5 of the norm


class InputSquares:
    """Hook that sums the squares of a linear's inputs per channel: `total` is ‖x_j‖², float64 (C,)."""

    def __init__(self, linear: nn.Linear) -> None:
        self.total = torch.zeros(linear.in_features, dtype=torch.float64)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        x_TC = inputs[0].reshape(-1, inputs[0].shape[-1])
        self.total += x_TC.square().sum(dim=0)


class InputGram:
    """Hook that sums the Gram matrix of a linear's inputs: `total` is XᵀX, float32 (C, C)."""

    def __init__(self, linear: nn.Linear) -> None:
        self.total = torch.zeros(linear.in_features, linear.in_features)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        x_TC = inputs[0].reshape(-1, inputs[0].shape[-1])
        self.total += x_TC.T @ x_TC


@torch.no_grad()
def prune_reference(model: PreTrainedModel, input_ids_ST: Tensor, method: str, pattern: Pattern) -> None:
    """Prune the MLPs of a LLaMA-like model in place.

    Args:
        model: float32, on the CPU, layers at `model.model.layers` with an unfused `mlp`.
        input_ids_ST: calibration tokens (samples, length).
        method: "dass", "wanda", "magnitude" or "sparsegpt".
        pattern: unstructured or N:M.
    """
    inputs_STH, calls = _catch_inputs(model, input_ids_ST)
    outputs_STH = torch.zeros_like(inputs_STH)
    for layer, call in zip(model.model.layers, calls, strict=True):
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        with _hooked(linears, method) as sums:
            _run(layer, call, inputs_STH, outputs_STH)
        for name in _PRUNED:
            weight_OC = linears[name].weight
            if method == "sparsegpt":
                weight_OC.copy_(sparsegpt(weight_OC, sums[name].total, pattern).weight_OC)
            else:
                score_OC = _score(weight_OC, name, method, {key: each.total for key, each in sums.items()})
                weight_OC[_removed(score_OC, name, method, pattern)] = 0.0
        _run(layer, call, inputs_STH, outputs_STH)
        inputs_STH, outputs_STH = outputs_STH, inputs_STH


def _run(layer: nn.Module, call: dict[str, Any], inputs_STH: Tensor, outputs_STH: Tensor) -> None:
    for window in range(len(inputs_STH)):
        output = layer(inputs_STH[window : window + 1], **call)
        outputs_STH[window] = (output[0] if isinstance(output, tuple) else output)[0]


@contextmanager
def _hooked(linears: dict[str, nn.Linear], method: str) -> Iterator[dict[str, InputSquares] | dict[str, InputGram]]:
    """Hooks while the context is open: Wanda's on every linear, SparseGPT's on those it prunes."""
    sums: dict[str, Any] = (
        {name: InputGram(linears[name]) for name in _PRUNED}
        if method == "sparsegpt"
        else {name: InputSquares(linear) for name, linear in linears.items()}
    )
    hooks = [linears[name].register_forward_hook(hook) for name, hook in sums.items()]
    yield sums
    for hook in hooks:
        hook.remove()


def _score(weight_OC: Tensor, name: str, method: str, squares: dict[str, Tensor]) -> Tensor:
    """Importance, larger = keep. `squares` holds ‖x_j‖² of every linear's input: ‖z_i‖² under down."""
    magnitude_OC = weight_OC.abs()
    if method == "magnitude":
        return magnitude_OC
    if method == "dass" and name != "mlp.down_proj":
        return magnitude_OC * squares["mlp.down_proj"].pow(_DASS_EXPONENT).float()[:, None]
    return magnitude_OC * squares[name].sqrt().float()[None, :]


def _removed(score_OC: Tensor, name: str, method: str, pattern: Pattern) -> Tensor:
    """True where a weight goes: the lowest scores of each competing group, found by sorting all of it."""
    along_I = method == "dass" and name != "mlp.down_proj"
    competing = score_OC.T if along_I else score_OC
    if pattern.group is not None:
        groups = competing.reshape(-1, pattern.group)
    else:
        groups = competing.reshape(1, -1) if method == "magnitude" else competing
    lowest = torch.sort(groups, dim=1, stable=True).indices[:, : pattern.removed_from(groups.shape[1])]
    removed = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, lowest, True).reshape(competing.shape)
    return removed.T if along_I else removed


def _catch_inputs(model: PreTrainedModel, input_ids_ST: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """What enters layer 0, (S, T, H), and the keyword arguments each layer is called with."""
    layers = model.model.layers
    calls: dict[nn.Module, dict[str, Any]] = {}
    caught: list[Tensor] = []

    def catch(layer: nn.Module, hidden_BTH: Tensor, **call: Any) -> Tensor:
        if layer is layers[0]:
            caught.append(hidden_BTH[0])
        calls[layer] = call
        return hidden_BTH

    for layer in layers:
        layer.forward = lambda hidden_BTH, layer=layer, **call: catch(layer, hidden_BTH, **call)
    for window in input_ids_ST:
        model.model(input_ids=window[None], use_cache=False)
    for layer in layers:
        del layer.forward  # the class's own is seen again
    return torch.stack(caught), [calls[layer] for layer in layers]
