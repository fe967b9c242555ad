"""A causal LM taken apart: token embeddings, then decoder layers that run one at a time.

The model's own forward decides what each layer is called with (rotary embeddings, attention masks, per-layer types):
it runs once with every layer replaced by a recorder. So no family's forward is written again here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from dass.errors import InputError


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden_BTH: Tensor) -> Tensor:
        """Run the layer: hidden states (B, T, H) in, hidden states out."""
        output = layer(hidden_BTH, *self.args, **self.kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)
        return hidden


class Decoder:
    """The embeddings and decoder layers of a causal LM in memory.

    Attributes:
        model: the model, in evaluation mode while it is used here.
        layers_name: where the layers are, for example "model.layers".
        device: where the layers compute.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises InputError when the model has no list of decoder layers."""
        self.model = model
        self.layers_name, self._layers = _find_layers(model)
        self.device = next(model.parameters()).device

    def __len__(self) -> int:
        return len(self._layers)

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
        """Hidden states entering layer 0, shape (B, T, H), and the call of every layer for windows of this shape."""
        hidden: list[Tensor] = []
        calls: list[LayerCall] = []
        with _recorders(self._layers, hidden, calls), suppress(_EveryLayerSeen):
            self.model.base_model(input_ids=input_ids_BT.to(self.device), use_cache=False)
        assert len(calls) == len(self)
        return hidden[0], calls


class _EveryLayerSeen(Exception):
    """Ends the model's forward once its last layer has been recorded."""


class _Recorder(nn.Module):
    """Stands where a decoder layer was and notes how it is called."""

    def __init__(self, layer: nn.Module, hidden: list[Tensor], calls: list[LayerCall], last: bool) -> None:
        super().__init__()
        self._original = (layer,)  # a tuple, so that the layer does not become a submodule
        self._hidden, self._calls, self._last = hidden, calls, last

    def __getattr__(self, name: str) -> Any:
        # Some families read attributes such as attention_type from the layer they are about to call.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        assert isinstance(hidden, Tensor)
        if not self._hidden:
            self._hidden.append(hidden)
        self._calls.append(LayerCall(args[1:], kwargs))
        if self._last:
            raise _EveryLayerSeen
        return hidden


@contextmanager
def _recorders(layers: nn.ModuleList, hidden: list[Tensor], calls: list[LayerCall]) -> Iterator[None]:
    originals = list(layers)
    for index, layer in enumerate(originals):
        layers[index] = _Recorder(layer, hidden, calls, last=index == len(originals) - 1)
    try:
        yield
    finally:
        for index, layer in enumerate(originals):
            layers[index] = layer


def _find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and 0 < len(module) == count:
            return name, module
    raise InputError(
        f"{type(model).__name__} has no list of {count} decoder layers: expected a decoder-only causal LM."
    )
