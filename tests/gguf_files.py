"""Tiny GGUF files, written on the spot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.models import tiny_tokenizer

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_tiny_gguf(
    path: Path,
    model: PreTrainedModel,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
    **metadata: Any,
) -> Path:
    """Write a tied Llama of `tiny_model` and `tiny_tokenizer` as float32 GGUF.

    `metadata` adds or replaces tokenizer keys; None takes one out. `keys` are further ones, and `tensors` too.
    """
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in _tokenizer(metadata).items():
        if value is not None:
            writer.add_key_value(f"tokenizer.ggml.{key}", value, _type(value), _subtype(value))
    for key, value in (keys or {}).items():
        writer.add_key_value(key, value, _type(value), _subtype(value))
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_stored_name(name), _stored(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer(changes: dict[str, Any]) -> dict[str, Any]:
    backend = tiny_tokenizer().backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "merges": [" ".join(merge) for merge in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }


def _type(value: Any) -> gguf.GGUFValueType:
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY
    return gguf.GGUFValueType.get_type(value) if not isinstance(value, int) else gguf.GGUFValueType.UINT32


def _subtype(value: Any) -> gguf.GGUFValueType | None:
    return gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None


def _stored_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _stored(name: str, tensor: Tensor, config: Any) -> Tensor:
    """llama.cpp turns query and key rows round: its rotary embedding pairs neighbours, transformers' pairs halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor.to(torch.float32)
    halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
