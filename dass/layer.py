"""One decoder layer as two halves: attention up to the MLP's residual input, and the MLP behind it.

Axes: B windows, T tokens, H hidden, I intermediate. `hidden_BTH` enters the layer; `mid_BTH` is what the norm before
the MLP receives and what the MLP's output is added to. Pruning changes the second half only, so the first is
computed once. The split is found by watching the layer run, and is trusted only after it reproduced the layer's own
output; a layer that does not split is run whole, twice (`splits` is False).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dass.decoder import LayerCall
from dass.glu import GluMlp, find_glu

Observer = Callable[[Tensor, Tensor], None]
"""Receives x_BTH, the MLP's input, and z_BTI, the input of its down projection."""


class _Reached(Exception):
    """Ends a forward at the tensor it was run for."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(frozen=True)
class _Split:
    """Names of the modules around the MLP; `after` is None when the MLP's output is added as it is."""

    before: str
    after: str | None


class LayerRunner:
    """Runs one decoder layer, whole or in halves.

    Attributes:
        mlp: the layer's GLU MLP.
        splits: whether the layer can be run in halves.
    """

    def __init__(self, layer: nn.Module, probe_BTH: Tensor, call: LayerCall) -> None:
        """Find the halves on a small probe batch of hidden states."""
        self.layer = layer
        self.mlp: GluMlp = find_glu(layer)
        self._split = self._find_split(probe_BTH, call)
        self.splits = self._split is not None

    def attention_half(self, hidden_BTH: Tensor, call: LayerCall) -> Tensor:
        """mid_BTH: the layer up to the norm before its MLP."""
        assert self._split is not None
        return _run_until_input(self.layer.get_submodule(self._split.before), lambda: call(self.layer, hidden_BTH))

    def mlp_input(self, mid_BTH: Tensor) -> Tensor:
        """x_BTH: what the MLP receives."""
        assert self._split is not None
        x: Tensor = self.layer.get_submodule(self._split.before)(mid_BTH)
        return x

    def intermediate(self, x_BTH: Tensor) -> Tensor:
        """z_BTI = act(gate x) ⊙ (up x), without the down projection."""
        return _run_until_input(self.mlp.down, lambda: self.mlp.module(x_BTH))

    def mlp_output(self, x_BTH: Tensor) -> Tensor:
        """y_BTH = down(z), before any norm and before the residual."""
        y: Tensor = self.mlp.module(x_BTH)
        return y

    def add_residual(self, mid_BTH: Tensor, y_BTH: Tensor) -> Tensor:
        """The layer's output from its two halves."""
        assert self._split is not None
        after = self._split.after
        return mid_BTH + (y_BTH if after is None else self.layer.get_submodule(after)(y_BTH))

    def whole(self, hidden_BTH: Tensor, call: LayerCall, observe: Observer | None = None) -> tuple[Tensor, Tensor]:
        """The layer's output and its MLP's output, both (B, T, H), in one forward."""
        seen: dict[str, Tensor] = {}
        hooks = [
            self.mlp.module.register_forward_pre_hook(lambda _, args: seen.__setitem__("x", args[0])),
            self.mlp.down.register_forward_pre_hook(lambda _, args: seen.__setitem__("z", args[0])),
            self.mlp.module.register_forward_hook(lambda _, __, output: seen.__setitem__("y", output)),
        ]
        try:
            output = call(self.layer, hidden_BTH)
        finally:
            for hook in hooks:
                hook.remove()
        if observe is not None:
            observe(seen["x"], seen["z"])
        return output, seen["y"]

    def _find_split(self, probe_BTH: Tensor, call: LayerCall) -> _Split | None:
        calls: list[tuple[str, Tensor, Tensor]] = []  # (child, its first input, its output) in order

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if args and isinstance(output, Tensor):
                    calls.append((name, args[0], output))

            return hook

        hooks = [child.register_forward_hook(note(name)) for name, child in self.layer.named_children()]
        try:
            output = call(self.layer, probe_BTH)
        finally:
            for hook in hooks:
                hook.remove()
        mlp = next(((x, y) for name, x, y in calls if name == self.mlp.name), None)
        if mlp is None:
            return None
        before = next(((name, mid) for name, mid, x in calls if x is mlp[0]), None)
        if before is None:
            return None
        after = next(((name, added) for name, y, added in calls if y is mlp[1]), (None, mlp[1]))
        if not _same(before[1] + after[1], output):
            return None
        return _Split(before[0], after[0])


def _run_until_input(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Run until `module` is called and return what it was called with."""

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    hook = module.register_forward_pre_hook(stop)
    try:
        run()
    except _Reached as reached:
        return reached.value
    finally:
        hook.remove()
    raise AssertionError(f"{type(module).__name__} was not called")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = 4 * torch.finfo(b.dtype).eps
    scale = b.detach().abs().nan_to_num().max().item()
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)  # NaN is reported later
