"""Tiny random models and a tiny tokenizer, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dass.model.checkpoint import Checkpoint
from tasks.workspace.devices import choose_dtype

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 32, 64, 3, 300

_SHAPE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama3": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"sliding_window": 8},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2": {},
    "qwen3": {},
}
FUSED_FAMILIES: dict[str, dict[str, Any]] = {"phi3": {}}
"""Gate and up in one parameter, so that a test that names gate_proj does not fit."""

MOE_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen2_moe": {  # layer 0 is dense, the others have a shared expert
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "deepseek_v3": {  # layer 0 is dense, the others have a shared expert; its router has a stored buffer
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
EVERY_FAMILY = FAMILIES | FUSED_FAMILIES | MOE_FAMILIES


def tiny_config(family: str = "llama", **changes: Any) -> PreTrainedConfig:
    """The config of a `tiny_model`."""
    return AutoConfig.for_model(**{"model_type": family, **_SHAPE, **EVERY_FAMILY.get(family, {}), **changes})


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random causal LM of `family`: 3 layers, H 32, I 64, 300 tokens of vocabulary, context 128."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # wide enough that activations differ between neurons
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 tokens, <s> is 0 and </s> is 1."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([tiny_text()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_text(paragraphs: int = 60) -> str:
    """Paragraphs of words, separated by blank lines; no two paragraphs alike."""
    generator = torch.Generator().manual_seed(1)
    sentence = (
        "the model keeps half of its weights and loses little of what it knows about rivers stones maps and bread"
    )
    words = sentence.split()
    lines = [
        " ".join(words[i] for i in torch.randint(len(words), (40,), generator=generator).tolist())
        for _ in range(paragraphs)
    ]
    return "\n\n".join(lines) + "\n"


def save_tiny_checkpoint(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Save a tiny model with its tokenizer as transformers does."""
    tiny_model(family, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokens(samples: int = 4, length: int = 16, seed: int = 0) -> torch.Tensor:
    """Random token ids, LongTensor (samples, length)."""
    return torch.randint(2, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def fast_dtype(folder: Path) -> torch.dtype:
    """What `engine.dtype: auto` computes a checkpoint in on this machine."""
    return choose_dtype("auto", Checkpoint(folder).main_dtype, torch.device("cpu"))
