"""A caller's model: what cannot be pruned in place is refused, and what is borrowed goes back as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from dass.errors import InputError
from dass.model.tensor_bytes import DTYPES

_PRUNABLE = {*DTYPES.values(), torch.float64}


def check_model(model: Any) -> PreTrainedModel:
    """Refuse what is no transformers model whose weights can be changed where they are.

    Raises:
        InputError: something else than a model, or a model that is wrapped, quantized, carries adapters, or is not
            wholly in the memory of one device.
    """
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise InputError(f"model is compiled ({kind}): expected the model itself. Pass model._orig_mod.")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"model carries adapters ({kind}): expected plain weights. Merge them.")
    if not isinstance(model, PreTrainedModel):
        hint = ""
        if isinstance(model, str) or hasattr(model, "__fspath__"):
            hint = " For a checkpoint folder there is dass.prune_checkpoint."
        elif isinstance(getattr(model, "module", None), PreTrainedModel):
            hint = " Pass model.module."
        raise InputError(f"model is a {kind}: expected a transformers model in memory.{hint}")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise InputError(f"model is quantized ({kind}): expected float32, bfloat16 or float16. Load it without that.")
    devices = {parameter.device for parameter in model.parameters()}
    if not devices or torch.device("meta") in devices:
        raise InputError(f"model ({kind}) has weights that are not in memory: load it whole, or use prune_checkpoint.")
    if len(devices) > 1:
        spread = ", ".join(sorted(map(str, devices)))
        raise InputError(f"model ({kind}) lies on {spread}: expected one device. Move it, or use prune_checkpoint.")
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.dtype not in _PRUNABLE:
            raise InputError(f"{name} is {parameter.dtype}: expected float32, bfloat16 or float16.")
        if parameter.is_inference() and not torch.is_inference_mode_enabled():
            raise InputError(
                f"{name} was made under torch.inference_mode and cannot be changed outside it: load the model without, "
                "or call dass.prune under torch.inference_mode too."
            )
    return model


@contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode and not compiled; afterwards every module is again as it was."""
    modes = [(module, module.training) for module in model.modules()]
    compiled = [(module, module._compiled_call_impl) for module, _ in modes if module._compiled_call_impl is not None]
    try:
        model.eval()
        for module, _ in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, call in compiled:
            module._compiled_call_impl = call
