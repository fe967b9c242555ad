"""A decoder whose weights stay on disk: one layer is in memory while it is used.

The model is built from its config with parameters on the meta device and buffers (rotary tables, embedding scales)
for real; a layer's parameters are read from the checkpoint when the layer is entered and dropped when it is left.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dass.model.checkpoint import Checkpoint
from dass.model.complete import check_complete
from dass.model.config_bounds import check_config_bounds
from dass.model.decoder import Decoder
from dass.model.memory import keep_large_blocks_apart, release_freed_memory
from dass.model.names import StoredNames
from dass.model.prefetch import Prefetcher
from dass.model.pretrained import alone, load_config, untrained

_THREAD = "dass-will-need"


class StreamedDecoder(Decoder):
    """A `Decoder` that reads each layer from a checkpoint folder."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype | None = None, prefetch: bool | None = None
    ) -> None:
        """Read the config and the tensors' places; no weight yet.

        Args:
            folder: a transformers checkpoint folder with safetensors.
            device: where layers compute.
            dtype: type to compute in; None takes the checkpoint's.
            prefetch: whether the next layer is read while one is in use, which takes a second layer's host memory.
                None does so where layers compute on another device than the host.

        Raises:
            InputError: no config of a causal LM, no safetensors, quantized weights, or a layer whose parameters the
                checkpoint does not hold.
        """
        keep_large_blocks_apart()
        self._checkpoint = Checkpoint(folder)
        self._checkpoint.check_prunable()
        check_config_bounds(self._checkpoint)
        model = _skeleton(folder, dtype or self._checkpoint.main_dtype)
        super().__init__(model)
        self.device = device
        self.dtype = model.dtype
        model.eval()
        self._names = StoredNames.of(self._checkpoint, model)
        check_complete(self._checkpoint, self._names, model)
        prefix = self.layers_name.rpartition(".")[0]
        wanted = [f"{prefix}.{name}" for name, _ in model.get_submodule(prefix).named_parameters()]
        for name in wanted:
            self._stored_dtype(name)
        layers = list(self._layers)  # `embed` puts others in their place for a while

        def read_layer(index: int) -> list[tuple[str, Tensor]]:
            return list(self._stored_values(layers[index], self.layer_name(index)))

        on_host = device.type == "cpu"
        self._ahead = Prefetcher(read_layer, len(layers)) if (prefetch or (prefetch is None and not on_host)) else None

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights on `device`; they are dropped at the end."""
        layer = self._layers[index]
        if self._ahead is None:
            self._read_into(layer, self.layer_name(index))
            if index + 1 < len(self):
                asked = [self._pieces(index + 1)]
                threading.Thread(target=self._checkpoint.will_need, args=asked, daemon=True, name=_THREAD).start()
        else:
            self._fill(layer, self._ahead.get(index))
        try:
            yield layer
        finally:
            _drop(layer)
            release_freed_memory()

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
            self._fill(module, self._stored_values(module, prefix, recurse=False), recurse=False)
        name, first = next(self.model.base_model.named_parameters())
        if first.is_meta:  # a model with a tower in front says by it which device it is on
            _set(self.model.base_model, name, torch.zeros(first.shape, dtype=first.dtype, device=self.device))
        try:
            yield
        finally:
            for _, module in outside:
                _drop(module, recurse=False)
            _set(self.model.base_model, name, first.to("meta"))

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Everything but the layers is in memory while this is open: embeddings, last norm and head."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        name = next(name for name, module in self.model.named_modules() if module is head)
        inside = self._names.tied_to(f"{name}.weight")
        with self.embeddings():
            if inside is None:
                self._fill(head, self._stored_values(head, name))
            else:
                head.weight = self.model.get_parameter(inside)
            try:
                yield
            finally:
                _drop(head)

    def _outside_layers(self) -> list[tuple[str, nn.Module]]:
        """Modules of the decoder that hold parameters or buffers of their own, layers aside."""
        base_name = self.layers_name.rpartition(".")[0]
        inside = {id(module) for layer in self._layers for module in layer.modules()}
        return [
            (f"{base_name}.{name}" if name else base_name, module)
            for name, module in self.model.get_submodule(base_name).named_modules()
            if id(module) not in inside and (module._parameters or module._buffers)
        ]

    def _stored_values(self, module: nn.Module, prefix: str, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """A module's parameters and stored buffers in host memory, by name inside the module, one at a time."""
        return ((name, self._read(f"{prefix}.{name}")) for name in self._stored_in(module, prefix, recurse))

    def _stored_in(self, module: nn.Module, prefix: str, recurse: bool = True) -> list[str]:
        parameters = [name for name, _ in module.named_parameters(recurse=recurse)]
        buffers = [name for name, _ in module.named_buffers(recurse=recurse)]
        # A router's correction bias is stored, for one; rotary tables are not.
        return parameters + [name for name in buffers if f"{prefix}.{name}" in self._names]

    def _read_into(self, module: nn.Module, prefix: str) -> None:
        """Fill a module from the checkpoint, two tensors at a time: one core copies slower than the cache gives."""
        with ThreadPoolExecutor(2, thread_name_prefix="dass-read") as threads:
            names = self._stored_in(module, prefix)
            list(threads.map(lambda name: self._put(module, name, self._read(f"{prefix}.{name}")), names))
        self._fill(module, [])

    def _fill(self, module: nn.Module, values: Iterable[tuple[str, Tensor]], recurse: bool = True) -> None:
        """Put a module on `device`, with these values in the types that the model has them in."""
        for name, value in values:
            self._put(module, name, value)
        for name, buffer in list(module.named_buffers(recurse=recurse)):
            _set(module, name, buffer.to(self.device))

    def _put(self, module: nn.Module, name: str, value: Tensor) -> None:
        dtype = _get(module, name).dtype
        # First the copy, which is quick out of page-locked memory, then the type: there it is the device's work.
        _set(module, name, value.to(self.device, non_blocking=True).to(dtype))

    def _read(self, name: str) -> Tensor:
        """A parameter or buffer as it is stored, in host memory: assembled from its pieces one at a time."""
        pin_memory = self.device.type == "cuda"
        whole = torch.empty(self._names.shape(name), dtype=self._stored_dtype(name), pin_memory=pin_memory)
        for piece in self._names.pieces(name):
            self._checkpoint.read_into(piece.stored, whole[piece.at])
        return whole

    def _pieces(self, index: int) -> list[str]:
        """Names of the stored tensors that a layer is put together from."""
        prefix = self.layer_name(index)
        names = self._stored_in(self._layers[index], prefix)
        return [piece.stored for name in names for piece in self._names.pieces(f"{prefix}.{name}")]

    def _stored_dtype(self, name: str) -> torch.dtype:
        """The type that holds every piece of a parameter exactly."""
        dtypes = [self._checkpoint.dtype(piece.stored) for piece in self._names.pieces(name)]
        return reduce(torch.promote_types, dtypes)


def _drop(module: nn.Module, recurse: bool = True) -> None:
    for name, parameter in list(module.named_parameters(recurse=recurse)):
        _set(module, name, parameter.to("meta"))


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    is_parameter = isinstance(_get(module, name), nn.Parameter)
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def structure_of(folder: Path) -> PreTrainedModel:
    """The language model of a checkpoint's config with nothing in memory: modules, and parameters and buffers on meta.

    Raises:
        InputError: no config, or one that transformers makes no language model of.
    """
    config = load_config(folder)
    with torch.device("meta"):
        return untrained(config)


def _skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    config = load_config(folder)
    with _parameters_on_meta():
        model = untrained(config, dtype)
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
    """Modules that this thread makes inside keep real buffers and get parameters without memory."""
    here = threading.get_ident()
    with alone():
        register = nn.Module.register_parameter

        def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if param is not None and threading.get_ident() == here:
                param = nn.Parameter(param.to("meta"), requires_grad=False)
            register(self, name, param)

        nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
