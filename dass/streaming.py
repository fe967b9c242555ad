"""A decoder whose weights stay on disk: one layer is in memory while it is used.

The model is built from its config with parameters on the meta device and buffers (rotary tables, embedding scales)
for real; a layer's parameters are read from the checkpoint when the layer is entered and dropped when it is left.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dass.checkpoint import Checkpoint
from dass.decoder import Decoder
from dass.errors import InputError
from dass.names import StoredNames


class StreamedDecoder(Decoder):
    """A `Decoder` that reads each layer from a checkpoint folder."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Read the config and the tensors' places; no weight yet.

        Args:
            folder: a transformers checkpoint folder with safetensors.
            device: where layers compute.
            dtype: type to compute in; None takes the checkpoint's.

        Raises:
            InputError: no config of a causal LM, no safetensors, quantized weights, or a layer whose parameters the
                checkpoint does not hold.
        """
        self._checkpoint = Checkpoint(folder)
        self._checkpoint.check_prunable()
        model = _skeleton(folder, dtype or self._checkpoint.main_dtype)
        super().__init__(model)
        self.device = device
        self.dtype = model.dtype
        model.eval()
        shapes = {name: place.shape for name, place in self._checkpoint.stored.items()}
        self._names = StoredNames(shapes, model)
        prefix = self.layers_name.rpartition(".")[0]
        wanted = [f"{prefix}.{name}" for name, _ in model.get_submodule(prefix).named_parameters()]
        missing = [name for name in wanted if name not in self._names]
        if missing:
            raise InputError(
                f"{folder} does not hold {missing[0]} ({len(missing)} of {type(model).__name__}'s parameters)."
            )
        for name in wanted:
            self._stored_dtype(name)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights on `device`; they are dropped at the end."""
        layer = self._layers[index]
        self._fill(layer, self.layer_name(index))
        layer.to(self.device)  # its buffers, if it has any
        try:
            yield layer
        finally:
            _drop(layer)

    def stored_weights(self, index: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The loaded ones where they are as stored; else read from the checkpoint.

        Computing in another type must not show in the scores, and a layer that is not loaded has no weights.
        """
        prefix = self.layer_name(index)
        loaded = super().stored_weights(index, names)
        if all(not loaded[name].is_meta and self._stored_dtype(f"{prefix}.{name}") == self.dtype for name in names):
            return loaded
        return {name: self._read(f"{prefix}.{name}").to(self.device) for name in names}

    def to_stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut tensors of parameters' shapes, such as masks, into what the checkpoint's tensors are."""
        return self._names.to_stored(tensors)

    def from_stored(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put a layer's tensors together from the checkpoint's."""
        prefix = self.layer_name(index)
        names = [f"{prefix}.{name}" for name, _ in self.structure(index).named_parameters()]
        return self._names.from_stored(names, tensors)

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """What is outside the layers is in memory only while this is open."""
        outside = self._outside_layers()
        for prefix, module in outside:
            self._fill(module, prefix)
            module.to(self.device)
        try:
            yield
        finally:
            for _, module in outside:
                _drop(module)

    def _outside_layers(self) -> list[tuple[str, nn.Module]]:
        """Modules of the decoder that hold parameters or buffers of their own, layers aside."""
        base_name = self.layers_name.rpartition(".")[0]
        inside = {id(module) for layer in self._layers for module in layer.modules()}
        return [
            (f"{base_name}.{name}" if name else base_name, module)
            for name, module in self.model.get_submodule(base_name).named_modules()
            if id(module) not in inside and (module._parameters or module._buffers)
        ]

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module's parameters and stored buffers their values, on `device`, in the model's types."""
        for name, parameter in list(module.named_parameters()):
            value = self._read(f"{prefix}.{name}").to(device=self.device, dtype=parameter.dtype)
            _set_parameter(module, name, value)
        for name, buffer in module.named_buffers():
            if f"{prefix}.{name}" in self._names:  # a router's correction bias, for one; rotary tables are not stored
                buffer.copy_(self._read(f"{prefix}.{name}"))

    def _read(self, name: str) -> Tensor:
        """A parameter as it is stored, in host memory: assembled from its pieces one at a time."""
        pieces = self._names.pieces(name)
        if pieces[0].at == ():
            return self._checkpoint.load([pieces[0].stored])[pieces[0].stored]
        whole = torch.empty(self.model.get_parameter(name).shape, dtype=self._stored_dtype(name))
        for piece in pieces:
            self._checkpoint.read_into(piece.stored, whole[piece.at])
        return whole

    def _stored_dtype(self, name: str) -> torch.dtype:
        """The type that holds every piece of a parameter exactly."""
        dtypes = [self._checkpoint.dtype(piece.stored) for piece in self._names.pieces(name)]
        return reduce(torch.promote_types, dtypes)


def _drop(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        _set_parameter(module, name, parameter.to("meta"))


def _set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def _skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # a wrong value shows as whatever fails on it: KeyError, TypeError, validation errors
        reason = shorten(f"{type(error).__name__}: {error}", 300)
        raise InputError(
            f"{folder} has no config that transformers can read, or make a causal LM from. {reason}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    _keep_some_in_float32(model, dtype)
    return model


def _keep_some_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Widen what transformers loads in float32 whatever the model's type, such as a router's correction bias."""
    patterns = model._get_dtype_plan(dtype)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if any(re.search(pattern, name) for pattern in patterns):
            value.data = value.data.float()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside keep real buffers and get parameters without memory."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
