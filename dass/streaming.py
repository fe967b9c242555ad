"""A decoder whose weights stay on disk: one layer is in memory while it is used.

The model is built from its config with parameters on the meta device and buffers (rotary tables, embedding scales)
for real; a layer's parameters are read from the checkpoint when the layer is entered and dropped when it is left.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dass.checkpoint import Checkpoint
from dass.decoder import Decoder
from dass.errors import InputError


class StreamedDecoder(Decoder):
    """A `Decoder` that reads each layer from a checkpoint folder."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Read the config and the tensors' places; no weight yet.

        Args:
            folder: a transformers checkpoint folder with safetensors.
            device: where layers compute.
            dtype: type to compute in; None takes the checkpoint's.

        Raises:
            InputError: no config, no safetensors, or a layer whose parameters the checkpoint does not hold.
        """
        self._checkpoint = Checkpoint(folder)
        model = _skeleton(folder, dtype or self._checkpoint.main_dtype)
        super().__init__(model)
        self.device = device
        self.dtype = model.dtype
        model.eval()
        prefix = self.layers_name.rpartition(".")[0]
        wanted = [f"{prefix}.{name}" for name, _ in model.get_submodule(prefix).named_parameters()]
        missing = [name for name in wanted if name not in self._checkpoint.stored]
        if missing:
            raise InputError(
                f"{folder} does not hold {missing[0]} ({len(missing)} of {type(model).__name__}'s parameters)."
            )

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
        """Read from the checkpoint again when computing in another type, so that scores do not depend on it."""
        prefix = self.layer_name(index)
        if all(self._checkpoint.dtype(f"{prefix}.{name}") == self.dtype for name in names):
            return super().stored_weights(index, names)
        stored = self._checkpoint.load(f"{prefix}.{name}" for name in names)
        return {name: stored[f"{prefix}.{name}"].to(self.device) for name in names}

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
        """Give a module's parameters their stored values, on `device` in `dtype`."""
        names = [name for name, _ in module.named_parameters()]
        loaded = self._checkpoint.load(f"{prefix}.{name}" for name in names)
        for name in names:
            value = loaded.pop(f"{prefix}.{name}").to(device=self.device, dtype=self.dtype)
            _set_parameter(module, name, value)


def _drop(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        _set_parameter(module, name, parameter.to("meta"))


def _set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def _skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no config that transformers can read: {str(error).splitlines()[0]}") from None
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    assert isinstance(model, PreTrainedModel)
    return model


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
