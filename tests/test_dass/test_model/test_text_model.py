"""Only the decoder-only language model inside a model is pruned; what holds none is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, PreTrainedModel

import dass
from dass.engine.fits import check_checkpoint_fits
from dass.errors import InputError
from dass.method.plan import plan
from dass.model.text_model import auto_class_of
from tests.models import tiny_tokens

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
}
_TOWER: dict[str, Any] = {  # as deep as the text model
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_ROTARY = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
_QWEN_TOWER = {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**_TEXT, "sliding_window": 8},
        "vision_config": {**_TOWER, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 299,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_TOWER, "model_type": "clip_vision_model"},
        "image_token_index": 299,
    },
    "internvl": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {**_TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 299,
    },
    "qwen2_vl": {
        "text_config": {**_TEXT, **_ROTARY},
        "vision_config": _QWEN_TOWER,
        "image_token_id": 299,
        "video_token_id": 298,
        "vision_start_token_id": 297,
        "vision_end_token_id": 296,
    },
    "idefics3": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _TOWER,
        "image_token_id": 299,
    },
}
_T5 = {"feed_forward_proj": "gated-gelu", "d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 4, "d_kv": 8}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({**_T5, "vocab_size": 300}, "is an encoder-decoder: expected a decoder-only"),
    "eurobert": (_TEXT, "no language model"),
    "llama4_text": (
        {**_TEXT, "num_local_experts": 4, "intermediate_size_mlp": 64},
        r"feed_forward\.experts \(Llama4TextExperts\) is an MLP whose layout is not known",
    ),
    "mamba": (
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 300, "state_size": 4},
        "MambaBlock has no GLU MLP",
    ),
    "wav2vec2": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "no language model",
    ),
}


def made(auto: Any, family: str, values: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(AutoConfig.for_model(family, **values))
    return model.eval()


@pytest.mark.parametrize("family", WRAPPERS)
def test_a_wrapper_is_pruned_in_its_text_model_alone_in_memory_and_on_disk(family: str, tmp_path: Path) -> None:
    model = made(AutoModelForMultimodalLM, family, WRAPPERS[family])
    base, pruned = tmp_path / "base", tmp_path / "pruned"
    model.save_pretrained(base)
    check_checkpoint_fits(base, plan())
    keep = dass.prune(model, tiny_tokens(), batch_tokens=32).keep
    assert len(keep) == 9
    assert all("vision" not in name for name in keep)
    dass.prune_checkpoint(base, pruned, tiny_tokens(), batch_tokens=32)
    before, after = load_file(base / "model.safetensors"), load_file(pruned / "model.safetensors")
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(changed) == 9
    assert all(name.split(".")[-2] in ("gate_proj", "up_proj", "down_proj") for name in changed)
    assert not any("vision" in name or "visual" in name for name in changed)
    config = AutoConfig.from_pretrained(pruned)
    loaded = auto_class_of(config).from_pretrained(pruned)
    assert type(loaded) is type(model)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", OTHERS)
def test_what_is_no_decoder_only_language_model_is_named(family: str, tmp_path: Path) -> None:
    values, message = OTHERS[family]
    auto = auto_of(family, values)
    model = made(auto, family, values)
    with pytest.raises(InputError, match=message.replace("no language model", "is no language model")):
        dass.prune(model, tiny_tokens())
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=message):
        check_checkpoint_fits(tmp_path / "base", plan())
    with pytest.raises(InputError, match=message):
        dass.prune_checkpoint(tmp_path / "base", tmp_path / "pruned", tiny_tokens())
    assert not (tmp_path / "pruned").exists()


def auto_of(family: str, values: dict[str, Any]) -> Any:
    try:
        return auto_class_of(AutoConfig.for_model(family, **values))
    except InputError:
        return AutoModel
