"""Attention's gradient on a CPU: in bfloat16 torch takes twice as long for it as in float32."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "sdpa_with_gradient_in_float32"


def attend_in_float32(model: PreTrainedModel) -> None:
    """From now on a model's attention computes in float32 where it is asked for a gradient, and answers in the type of
    its inputs. One that does not attend by torch's own function is left as it is."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    if not query.requires_grad:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        wide, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **how)
    return wide.to(query.dtype), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
