"""Which part of a model is the decoder-only language model, and where its layers are.

A vision-language model is pruned in its text model: only that is searched, so that a tower of the same depth is never
taken for it. What holds no decoder-only language model is refused by name.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from dass.errors import InputError
from dass.model.glu import has_glu

EXPECTED = "expected a decoder-only language model, or a vision-language model around one"


def auto_class_of(config: PretrainedConfig) -> Any:
    """The Auto class that makes, and loads, the language model of a config.

    Where transformers has both a language model and a multimodal one for a config, the one that the config names as its
    architecture counts: its checkpoint names the tensors.

    Raises:
        InputError: an encoder-decoder, or a config that transformers makes no language model of.
    """
    _refuse_encoder_decoder(config, type(config).__name__)
    named = (getattr(config, "architectures", None) or [None])[0]
    found = [
        auto
        for auto, mapping in (
            (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
            (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
        )
        if type(config) in mapping
    ]
    if not found:
        raise InputError(f"transformers has no language model for {type(config).__name__}: {EXPECTED}.")
    for auto in found:
        made: Any = auto._model_mapping[type(config)]
        if named in [each.__name__ for each in (made if isinstance(made, tuple) else (made,))]:
            return auto
    return found[0]


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a model's language model, and their full name ("model.language_model.layers").

    Raises:
        InputError: the model holds no decoder-only language model.
    """
    name = type(model).__name__
    _refuse_encoder_decoder(model.config, name)
    known = type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(model.config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    if not known and not model.can_generate():
        raise InputError(f"{name} is no language model that generates text: {EXPECTED}.")
    if type(model.base_model).forward is nn.Module.forward:
        raise InputError(f"{name} has no forward of its own, only its parts have: {EXPECTED}. Take the part.")
    try:
        config = model.config.get_text_config()
    except ValueError:
        raise InputError(f"{name} is made of several language models: {EXPECTED}.") from None
    _refuse_encoder_decoder(config, name)
    count = getattr(config, "num_hidden_layers", None)
    lists = list(_lists_in_text_model(model, type(config)))
    fitting = [(where, layers) for where, layers in lists if len(layers) == count and not _is_leaf(layers[0])]
    for where, layers in fitting:
        if all(has_glu(layer) for layer in layers):
            return where, layers
    if fitting:
        return fitting[0]
    found = ", ".join(f"{where} ({len(layers)})" for where, layers in lists[:4]) or "no list of layers"
    raise InputError(f"{name} has no list of {count} decoder layers in its text model: found {found}; {EXPECTED}.")


def _refuse_encoder_decoder(config: PretrainedConfig, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder: {EXPECTED}.")


def _lists_in_text_model(model: PreTrainedModel, config: type[PretrainedConfig]) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules whose innermost model has a config of the text model's type."""
    owners: dict[str, PreTrainedModel] = {"": model}
    for name, module in model.named_modules():
        owner = owners[name] if name in owners else owners[name.rpartition(".")[0]]
        owners[name] = module if isinstance(module, PreTrainedModel) else owner
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(owner.config, config):
            yield name, module


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
