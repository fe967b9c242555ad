"""One decoder layer as two halves: attention up to the MLP's residual input, and the MLP behind it.

Axes: B windows, T tokens, H hidden, I intermediate, N tokens of one MLP (an expert sees those routed to it).
`hidden_BTH` enters the layer; `mid_BTH` is what the norm before the MLP receives and what the MLP's output is added to.
Pruning changes the second half only, so the first is computed once. The split is found by watching the layer run, and
is trusted only after it reproduced the layer's own output; a layer that does not split is run whole, twice (`splits` is
False). Its `state` is then hidden_BTH where a layer that splits has mid_BTH.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dass.model.calls import LayerCall
from dass.model.glu import GluMlp, find_glus

Observer = Callable[[int, Tensor, Tensor], None]
"""Receives the index of an MLP among `mlps`, its input x (..., H) and the input of its down projection z (..., I)."""


class _Seen(Exception):
    """Ends a forward once all that was wanted from it has been seen."""


@dataclass(frozen=True)
class _Split:
    """Names of the modules around the MLP; `after` is None when the MLP's output is added as it is."""

    before: str
    after: str | None


class LayerRunner:
    """Runs one decoder layer, whole or in halves.

    Attributes:
        mlps: the layer's GLU MLPs.
    """

    def __init__(self, layer: nn.Module, probe_BTH: Tensor, call: LayerCall) -> None:
        """Find the halves on a small probe batch of hidden states."""
        self.layer = layer
        self.mlps: list[GluMlp] = find_glus(layer)
        # The child that holds every MLP. Where several do, the layer itself stands for them.
        holders = {mlp.name.partition(".")[0] for mlp in self.mlps}
        self._block = layer.get_submodule(holders.pop()) if len(holders) == 1 else layer
        self._split = self._find_split(probe_BTH, call)

    @property
    def splits(self) -> bool:
        """Whether the layer can be run in halves."""
        return self._split is not None

    @property
    def norms(self) -> tuple[str, ...]:
        """Names inside the layer of the vectors that scale or shift what enters the MLP and what leaves it."""
        assert self._split is not None
        around = (name for name in (self._split.before, self._split.after) if name is not None)
        return tuple(
            f"{module}.{name}"
            for module in around
            for name, parameter in self.layer.get_submodule(module).named_parameters()
            if parameter.dim() == 1
        )

    def confirm(self, probe_BTH: Tensor, call: LayerCall) -> None:
        """Give the halves up unless another batch shows the same ones."""
        if self._split is not None and self._find_split(probe_BTH, call) != self._split:
            self._split = None

    def attention_half(self, hidden_BTH: Tensor, call: LayerCall) -> Tensor:
        """mid_BTH: the layer up to the norm before its MLP."""
        assert self._split is not None
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])
            raise _Seen

        hook = self.layer.get_submodule(self._split.before).register_forward_pre_hook(stop)
        _run([hook], lambda: call(self.layer, hidden_BTH))
        return seen[0]

    def mlp_half(self, mid_BTH: Tensor) -> Tensor:
        """The layer's output (B, T, H), from mid_BTH on."""
        assert self._split is not None
        y_BTH: Tensor = self._block(self.layer.get_submodule(self._split.before)(mid_BTH))
        after = self._split.after
        return mid_BTH + (y_BTH if after is None else self.layer.get_submodule(after)(y_BTH))

    def advance(self, state_BTH: Tensor, call: LayerCall) -> tuple[Tensor, Tensor]:
        """The layer's output and its MLPs' output y (before any norm and before the residual), both (B, T, H)."""
        done = self._rest(state_BTH, call, [])
        assert done is not None
        return done

    def observe(
        self, state_BTH: Tensor, call: LayerCall, see: Observer, *, finish: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """Show `see` what every MLP computes on this batch.

        Args:
            state_BTH: mid_BTH, or hidden_BTH of a layer that does not split.
            call: how the layer is called.
            see: called at most once for each MLP, not at all for an expert without tokens.
            finish: also compute the rest and return what `advance` does. Without it the layer stops when every MLP
                has been seen: the last down projection is not computed.
        """
        waiting = set(range(len(self.mlps)))

        def seen(index: int, x: Tensor, z: Tensor) -> None:
            if len(x):
                see(index, x, z)
            waiting.discard(index)
            if not waiting and not finish:
                raise _Seen

        return self._rest(state_BTH, call, self._observers(seen))

    def observe_all_tokens(self, state_BTH: Tensor, call: LayerCall, which: list[int], see: Observer) -> None:
        """Show `see` what some of the experts make of every token of this batch, routed to them or not."""
        waiting = list(which)

        def show(index: int, x: Tensor) -> None:
            see(index, x, self.mlps[index].own_intermediate(x))
            waiting.remove(index)
            if not waiting:
                raise _Seen

        def hook_for(index: int) -> Any:
            mlp = self.mlps[index]
            # Experts that are modules of their own may not be called: their mixture is.
            holder = mlp.module if mlp.expert is not None else self._block
            return holder.register_forward_pre_hook(lambda _, args: show(index, args[0]))

        self._rest(state_BTH, call, [hook_for(index) for index in which])

    def _rest(self, state_BTH: Tensor, call: LayerCall, hooks: list[Any]) -> tuple[Tensor, Tensor] | None:
        """What follows `state`, under hooks: output and y, or None when a hook ended it."""
        outputs: list[Tensor] = []

        def note(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        hooks = [*hooks, self._block.register_forward_hook(note)]
        whole = self._split is None
        output = _run(hooks, lambda: call(self.layer, state_BTH) if whole else self.mlp_half(state_BTH))
        return None if output is None else (output, outputs[0])

    def _observers(self, seen: Observer) -> list[Any]:
        hooks: list[Any] = []
        stacks: dict[nn.Module, list[tuple[int, GluMlp]]] = {}
        for index, mlp in enumerate(self.mlps):
            if mlp.expert is None:
                hooks += _observe_module(index, mlp, seen)
            else:
                stacks.setdefault(mlp.module, []).append((index, mlp))
        return hooks + [_observe_experts(module, experts, seen) for module, experts in stacks.items()]

    def _find_split(self, probe_BTH: Tensor, call: LayerCall) -> _Split | None:
        if not call.layout.is_plain:
            return None
        calls: list[tuple[nn.Module, str, Tensor, Tensor]] = []  # (child, name, its first input, its output) in order

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(child: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if args and isinstance(output, Tensor):
                    calls.append((child, name, args[0], output))

            return hook

        children = self.layer.named_children()
        hooks = [child.register_forward_hook(note(name)) for name, child in children]
        output = _run(hooks, lambda: call(self.layer, probe_BTH))
        assert output is not None
        block = next(((x, y) for child, _, x, y in calls if child is self._block), None)
        if block is None:
            return None
        before = next(((name, mid) for _, name, mid, x in calls if x is block[0]), None)
        if before is None:
            return None
        after = next(((name, added) for _, name, y, added in calls if y is block[1]), (None, block[1]))
        if not _same(before[1] + after[1], output):
            return None
        return _Split(before[0], after[0])


def _observe_module(index: int, mlp: GluMlp, seen: Observer) -> list[Any]:
    """Hooks on an MLP of linear modules: z is what its own forward gives the down projection."""
    inputs: list[Tensor] = []
    return [
        mlp.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        mlp.down.register_forward_pre_hook(lambda _, args: seen(index, inputs[-1], args[0])),
    ]


def _observe_experts(module: nn.Module, experts: list[tuple[int, GluMlp]], seen: Observer) -> Any:
    """A hook on a module of stacked experts: called with hidden states (N, H) and the experts chosen, (N, k)."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x_NH, chosen_NK = args[0], args[1]
        for index, mlp in experts:
            assert mlp.expert is not None
            x = x_NH[chosen_NK.eq(mlp.expert).any(dim=-1)]
            seen(index, x, mlp.intermediate(x, mlp.weights()))

    return module.register_forward_pre_hook(hook)


def _run(hooks: list[Any], run: Callable[[], Tensor]) -> Tensor | None:
    """Run under hooks, which are removed; None when one of them ended it."""
    try:
        return run()
    except _Seen:
        return None
    finally:
        for hook in hooks:
            hook.remove()


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = 4 * torch.finfo(b.dtype).eps
    scale = b.detach().abs().nan_to_num().max().item()
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)  # NaN is reported later
