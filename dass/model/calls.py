"""How decoder layers are called: what the model's own forward hands to each of them besides the hidden states.

Axes: B windows of a batch, T tokens, H hidden.
"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from dass.errors import InputError


@dataclass(frozen=True)
class HiddenShape:
    """How a family lays hidden states out, and how the engine does: windows first, (B, tokens and streams, H).

    Attributes:
        axis: where the windows are.
        inner: the other sizes, in their order.
    """

    axis: int
    inner: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the family's hidden states are (B, T, H)."""
        return self.axis == 0 and len(self.inner) == 2

    def pack(self, hidden: Tensor) -> Tensor:
        """The family's layout to (B, ..., H)."""
        return hidden if self.is_plain else hidden.movedim(self.axis, 0).flatten(1, -2)

    def unpack(self, hidden_BTH: Tensor) -> Tensor:
        """Undo `pack`."""
        return hidden_BTH if self.is_plain else hidden_BTH.unflatten(1, self.inner[:-1]).movedim(0, self.axis)


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer is called with besides the hidden states, for one batch.

    Layers of a batch may be called with the same mapping, into which one puts what another takes out (Gemma's shared
    keys and values): it is the batch's own, and is filled as the layers run.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layout: HiddenShape = field(default=HiddenShape(0, (0, 0)))

    def __call__(self, layer: nn.Module, hidden_BTH: Tensor) -> Tensor:
        """Run the layer: hidden states (B, T, H) in, hidden states out."""
        there = hidden_BTH.device
        args = [_moved(value, there) for value in self.args]
        kwargs = {name: _moved(value, there) for name, value in self.kwargs.items()}
        output = layer(self.layout.unpack(hidden_BTH), *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)
        return self.layout.pack(hidden)

    def named(self, layer: nn.Module) -> Iterator[tuple[str, Any]]:
        """The arguments by name."""
        names = [name for name in signature(type(layer).forward).parameters if name != "self"][1:]
        for position, value in enumerate(self.args):
            yield (names[position] if position < len(names) else f"argument {position + 1}"), value
        yield from self.kwargs.items()


class BatchCalls:
    """The calls of every batch. Batches share the tensors that are equal: masks and rotary tables exist once."""

    def __init__(self) -> None:
        self._first: dict[int, list[LayerCall]] = {}  # of each batch size
        self._calls: dict[int, list[LayerCall]] = {}
        self._mappings: dict[int, tuple[MutableMapping[Any, Any], dict[Any, Any]]] = {}

    def add(self, start: int, windows: int, calls: list[LayerCall], keep: Callable[[Tensor], Tensor]) -> None:
        """Note the calls of the batch that starts at window `start`.

        Args:
            start: its first window.
            windows: how many it has.
            calls: one a layer.
            keep: puts a tensor that is this batch's own where it is to lie.
        """
        first = self._first.setdefault(windows, calls)
        if first is not calls:
            shared = _Sharing(keep)
            calls = [shared.call(call, like) for call, like in zip(calls, first, strict=True)]
        self._calls[start] = calls
        for call in calls:
            for value in [*call.args, *call.kwargs.values()]:
                if isinstance(value, MutableMapping):
                    self._mappings.setdefault(id(value), (value, dict(value)))

    def all_of(self, start: int) -> list[LayerCall]:
        """How the batch that starts at window `start` calls every layer."""
        return self._calls[start]

    def of(self, start: int, layer: int) -> LayerCall:
        """How the batch that starts at window `start` calls a layer."""
        return self._calls[start][layer]

    @property
    def may_carry_state(self) -> bool:
        """Whether layers are given something into which they could put what later ones take out."""
        return bool(self._mappings)

    @property
    def carry_state(self) -> bool:
        """Whether a layer that has run left something in a call for a later one."""
        return any(
            value.keys() != before.keys() or any(value[key] is not before[key] for key in before)
            for value, before in self._mappings.values()
        )


class _Sharing:
    """Replaces what a batch's calls hold by the equal tensors of an earlier batch's."""

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        self._keep = keep
        self._done: dict[tuple[int, int], Any] = {}
        self._alive: list[Any] = []  # what `_done` knows by its id

    def call(self, call: LayerCall, like: LayerCall) -> LayerCall:
        args = tuple(self._argument(*pair) for pair in zip(call.args, like.args, strict=True))
        kwargs = {name: self._argument(value, like.kwargs.get(name)) for name, value in call.kwargs.items()}
        return LayerCall(args, kwargs, call.layout)

    def _argument(self, value: Any, like: Any) -> Any:
        shared = self._value(value, like)
        if isinstance(shared, Tensor) and shared is not like:
            key = (id(value), -1)
            if key not in self._done:
                self._alive.append(value)
                self._done[key] = self._keep(value)
            return self._done[key]
        return shared

    def _value(self, value: Any, like: Any) -> Any:
        key = (id(value), id(like))
        if key not in self._done:
            self._alive += [value, like]
            self._done[key] = self._shared(value, like)
        return self._done[key]

    def _shared(self, value: Any, like: Any) -> Any:
        if isinstance(value, Tensor):
            return like if isinstance(like, Tensor) and same_tensor(value, like) else value
        if type(value) in (tuple, list) and isinstance(like, type(value)) and len(value) == len(like):
            return type(value)(self._value(*pair) for pair in zip(value, like, strict=True))
        if isinstance(value, MutableMapping) and isinstance(like, MutableMapping):
            for name in list(value):  # in place: the layers of a batch pass things on through it
                value[name] = self._value(value[name], like.get(name))
        return value


def check_calls(layers: nn.ModuleList, name: str, calls: list[LayerCall], disturbed: list[LayerCall]) -> None:
    """Refuse what cannot be recorded before the layers have run.

    Args:
        layers: the decoder layers.
        name: their name.
        calls: how they are called.
        disturbed: the same, with other hidden states behind every layer.

    Raises:
        InputError: an argument that depends on earlier layers' outputs, or a key-value cache. It is named.
    """
    for index, layer in enumerate(layers):
        others = dict(disturbed[index].named(layer))
        for argument, value in calls[index].named(layer):
            where = f"{name}.{index} is called with {argument}"
            if isinstance(value, Cache):
                raise InputError(
                    f"{where}, a {type(value).__name__}, though use_cache is False: expected a model that runs without "
                    "a cache. It cannot be pruned layer by layer."
                )
            if not _same(value, others.get(argument)):
                raise InputError(
                    f"{where}, which depends on what earlier layers put out: expected layers that pass on nothing but "
                    "hidden states and what they put into a mapping. It cannot be pruned layer by layer."
                )


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, NaN being equal to itself."""
    if a is b:
        return True
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and same_tensor(a, b)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, MutableMapping):
        return isinstance(b, MutableMapping) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return True  # numbers, flags and what cannot be compared: a forward decides on them, not a layer's output


def _moved(value: Any, device: torch.device) -> Any:
    """A batch's own tensors may lie elsewhere."""
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
