"""A causal LM taken apart: token embeddings, then decoder layers that run one at a time.

The model's own forward decides what each layer is called with (rotary embeddings, attention masks, per-layer types):
it runs with every layer's forward replaced by a recorder. So no family's forward is written again here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dass.errors import InputError
from dass.model.calls import HiddenShape, LayerCall, check_calls
from dass.model.memory import is_out_of_memory
from dass.model.text_model import find_layers


class Decoder:
    """The embeddings and decoder layers of a causal LM in memory.

    Attributes:
        model: the model, in evaluation mode while it is used here.
        layers_name: where the layers are, for example "model.layers".
        device: where the layers compute.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises InputError when the model holds no decoder-only language model."""
        self.model = model
        self.layers_name, self._layers = find_layers(model)
        self.device = next(model.parameters()).device
        self._layouts: dict[int, HiddenShape] = {}  # by the windows' length
        self._as_tuples = False  # whether the layers return tuples

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def vocabulary(self) -> int:
        """How many token ids have an embedding."""
        config = self.model.config.get_text_config()
        sizes = [config.vocab_size, getattr(config, "vocab_size_per_layer_input", None)]
        with suppress(NotImplementedError):  # a family that does not say where they are
            sizes.append(getattr(self.model.get_input_embeddings(), "num_embeddings", None))
        return min(size for size in sizes if isinstance(size, int))

    @property
    def context(self) -> int | None:
        """Tokens of the longest window the model is made for; None when its config does not say."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return context if isinstance(context, int) and context > 0 else None

    def layer_name(self, index: int) -> str:
        """Full name of a layer, the prefix of its parameters' names."""
        return f"{self.layers_name}.{index}"

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer, ready to compute while the context is open."""
        yield self._layers[index]

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """What is outside the layers, ready for `embed` while the context is open."""
        yield

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Everything but the layers, ready for `behind_layers` and the head while the context is open."""
        yield

    def structure(self, index: int) -> nn.Module:
        """The layer's modules, without a promise that its weights are loaded."""
        return self._layers[index]

    def stored_weights(self, index: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """A layer's parameters in the precision they are stored in, keyed by name inside the layer."""
        layer = self._layers[index]
        return {name: layer.get_parameter(name).detach() for name in names}

    def to_stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors keyed by full parameter name, such as masks, as a checkpoint of this model names and shapes them."""
        return dict(tensors)

    def from_stored(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `to_stored` for one layer: those of its parameters that `tensors` holds completely, by full name."""
        names = (f"{self.layer_name(index)}.{name}" for name, _ in self.structure(index).named_parameters())
        return {name: tensors[name] for name in names if name in tensors}

    def embed(self, input_ids_BT: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """Hidden states entering layer 0, shape (B, T, H), and the call of every layer for these windows.

        Raises:
            InputError: layers that are not called one after the other, each once, or called with something that cannot
                be known before the layers in front have run.
        """
        length = input_ids_BT.shape[1]
        if length not in self._layouts:
            self._layouts[length] = self._check_forward(input_ids_BT[:1])
        layout = self._layouts[length]
        hidden, calls = self._record(input_ids_BT)
        return layout.pack(hidden), [LayerCall(args, kwargs, layout) for args, kwargs in calls]

    def behind_layers(self, input_ids_BT: Tensor, hidden_BTH: Tensor) -> Any:
        """The body's output, were these the last layer's hidden states. Call inside `outside`, after `embed`."""
        length = input_ids_BT.shape[1]
        states = self._layouts[length].unpack(hidden_BTH)
        answer = (states,) if self._as_tuples else states
        before = [layer.__dict__.get("forward") for layer in self._layers]
        for layer in self._layers:
            layer.forward = lambda *_, **__: answer
        try:
            with torch.no_grad():
                return self.model.base_model(input_ids=input_ids_BT, use_cache=False)
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def _check_forward(self, input_ids_1T: Tensor) -> HiddenShape:
        """Run one window with other hidden states behind the layers, and two windows: what follows, and where."""
        hidden, calls = self._record(input_ids_1T)
        _, disturbed = self._record(input_ids_1T, disturb=True)
        check_calls(
            self._layers,
            self.layers_name,
            [LayerCall(*call) for call in calls],
            [LayerCall(*call) for call in disturbed],
        )
        if hidden.dim() == 3:
            return HiddenShape(0, tuple(hidden.shape[1:]))
        two, _ = self._record(input_ids_1T.repeat(2, 1))
        axes = [axis for axis, (one, other) in enumerate(zip(hidden.shape, two.shape, strict=True)) if one != other]
        if len(axes) != 1 or axes[0] == hidden.dim() - 1 or hidden.dim() < 3:
            raise InputError(
                f"{self.layer_name(0)} of {type(self.model).__name__} gets hidden states of shape "
                f"{tuple(hidden.shape)} for one window: expected one axis of windows, and (B, T, H) around it."
            )
        return HiddenShape(axes[0], tuple(size for axis, size in enumerate(hidden.shape) if axis != axes[0]))

    def _record(
        self, input_ids_BT: Tensor, disturb: bool = False
    ) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        name = type(self.model).__name__
        recording = _Recording(self.layers_name, self._layers, name, disturb, self._as_tuples)
        ids_BT = input_ids_BT.to(self.device, copy=True)  # a call may keep them
        with recording:
            try:
                self.model.base_model(input_ids=ids_BT, use_cache=False)
            except _EveryLayerSeen:
                pass
            except _TuplesWanted:
                self._as_tuples = True
                return self._record(input_ids_BT, disturb)
            except InputError:
                raise
            except Exception as error:
                if disturb and recording.is_complete:
                    pass  # behind the layers there may be weights that are not here
                elif is_out_of_memory(error):
                    raise
                elif isinstance(error, ValueError) and "to unpack" in str(error):
                    raise InputError(
                        f"The layers of {name} hand on more than hidden states ({error}): expected layers that depend "
                        "on nothing else of those in front. It cannot be pruned layer by layer."
                    ) from None
                else:
                    reason = shorten(f"{type(error).__name__}: {error}", 200)
                    raise InputError(
                        f"{name} does not run on a window of text ({reason}): expected a model that needs token ids "
                        "alone."
                    ) from error
        return recording.result()


class _EveryLayerSeen(Exception):
    """Ends the model's forward once its last layer has been recorded."""


class _TuplesWanted(Exception):
    """The model takes the first of what a layer returns."""


class _Recording:
    """While open, the layers note how they are called and hand the hidden states on, `disturb`ed or as they are.

    The layers stay where they are, and hooks others have put on them stay quiet: whoever looks at the model's modules
    in the meantime, such as transformers' own output recorders, finds what was always there.
    """

    def __init__(self, name: str, layers: nn.ModuleList, model: str, disturb: bool, as_tuples: bool) -> None:
        self._name, self._layers, self._model = name, layers, model
        self._disturb, self._as_tuples = disturb, as_tuples
        self._hidden: list[Tensor] = []
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._handed_on: Tensor | None = None
        self._before: list[tuple[nn.Module, Any, dict[int, Any], dict[int, Any]]] = []

    @property
    def is_complete(self) -> bool:
        """Whether every layer was called."""
        return len(self._calls) == len(self._layers)

    def result(self) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        """What enters the first layer, and every layer's further arguments.

        Raises:
            InputError: not every layer was called.
        """
        if not self.is_complete:
            raise InputError(
                f"{self._model} calls {len(self._calls)} of its {len(self._layers)} {self._name} for a window of text: "
                "expected each once, in order."
            )
        return self._hidden[0], self._calls

    def __enter__(self) -> None:
        for index, layer in enumerate(self._layers):
            hooks = dict(layer._forward_hooks), dict(layer._forward_pre_hooks)
            self._before.append((layer, layer.__dict__.get("forward"), *hooks))
            layer._forward_hooks.clear()
            layer._forward_pre_hooks.clear()
            layer.forward = self._recorder(index)

    def __exit__(self, *_: object) -> None:
        for layer, forward, hooks, pre_hooks in self._before:
            del layer.forward
            if forward is not None:
                layer.forward = forward
            for now, before in ((layer._forward_hooks, hooks), (layer._forward_pre_hooks, pre_hooks)):
                added = {number: hook for number, hook in now.items() if number not in before}
                now.clear()
                now.update(before | added)

    def _recorder(self, index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            hidden = args[0] if args else kwargs.pop("hidden_states", None)
            if index != len(self._calls) or not isinstance(hidden, Tensor):
                raise InputError(
                    f"{self._model} calls {self._name}.{index} when layer {len(self._calls)} is due: expected each "
                    "layer once, in order, with hidden states first. It cannot be pruned layer by layer."
                )
            before = self._handed_on
            if before is not None and hidden is not before:
                if hidden.shape == before.shape[1:] and not self._as_tuples:
                    raise _TuplesWanted
                raise InputError(
                    f"{self._model} changes the hidden states between {self._name}.{index - 1} and .{index}: expected "
                    "each layer to get what the one before it puts out. It cannot be pruned layer by layer."
                )
            self._hidden = self._hidden or [hidden]
            self._calls.append((args[1:], kwargs))
            if self.is_complete and not self._disturb:
                raise _EveryLayerSeen
            self._handed_on = hidden + 1 if self._disturb else hidden.view_as(hidden)
            return (self._handed_on,) if self._as_tuples else self._handed_on

        return forward
