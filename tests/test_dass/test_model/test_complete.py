"""What a checkpoint declares and what it holds are compared, before anything is made of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dass
from dass.errors import InputError
from dass.model.complete import check_checkpoint, check_declared_dtype, class_to_name
from dass.model.pretrained import load_model
from tests.models import EVERY_FAMILY, tiny_model, tiny_tokens

GATE = "model.layers.1.mlp.gate_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
NORM = "model.norm.weight"
EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
Tensors = dict[str, Tensor]


def change(folder: Path, tensors: Callable[[Tensors], object] | None = None, **config: Any) -> None:
    """Edit the tensors of a single-file checkpoint in place, and keys of its config."""
    if tensors is not None:
        stored = load_file(folder / "model.safetensors")
        tensors(stored)
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))


def swap_rows(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDINGS].flip(0)


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "no head": ("gemma3_text", {"tie_word_embeddings": False}, r"does not hold lm_head\.weight \(1 of"),
    "no embeddings": (
        "llama",
        {"tensors": lambda t: t.pop(EMBEDDINGS)},
        "vocab_size is 300, and the checkpoint's tensors have at most 64",
    ),
    "no norm": ("llama", {"tensors": lambda t: t.pop(NORM)}, rf"does not hold {NORM} \(1 of LlamaForCausalLM"),
    "no gate": ("llama", {"tensors": lambda t: t.pop(GATE)}, f"does not hold {GATE}"),
    "an expert too few": ("mixtral", {"tensors": lambda t: t.pop(EXPERT)}, "cannot be joined|the config says"),
    "no correction bias": (
        "deepseek_v3",
        {"tensors": lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias")},
        "does not hold .*e_score_correction_bias",
    ),
    "a layer too many": (
        "llama",
        {"num_hidden_layers": 2},
        r"holds model\.layers\.2\.input_layernorm.* \(9 such",
    ),
    "a layer too few": (
        "llama",
        {"num_hidden_layers": 4},
        "num_hidden_layers is 4, and the checkpoint's tensors have at most 3 layers",
    ),
    "a stray tensor": ("llama", {"tensors": lambda t: t.update(stray=torch.ones(2, 2))}, r"holds stray \(1 such"),
    "a bias that is not declared": (
        "llama",
        {"tensors": lambda t: t.update({GATE.replace("weight", "bias"): torch.ones(64)})},
        "holds .*gate_proj.bias",
    ),
    "another width": ("llama", {"intermediate_size": 48}, r"\(64, 32\), and the config says \(48, 32\)"),
    "another vocabulary": ("llama", {"vocab_size": 299}, r"\(300, 32\), and the config says \(299, 32\)"),
    "other heads": ("llama", {"num_key_value_heads": 4}, r"k_proj\.weight.* and the config says \(32, 32\)"),
    "another norm": ("llama", {"tensors": lambda t: t.update({NORM: torch.ones(31)})}, r"\(31,\), and the config says"),
    "tied, and stored twice": ("llama", {"tensors": swap_rows}, r"ties lm_head\.weight to model\.embed_tokens\.weight"),
    "weights elsewhere": ("llama", {"transformers_weights": "other.safetensors"}, "weights are read from 'other"),
    "kernels elsewhere": ("llama", {"_attn_implementation": "org/kernel"}, "asks for code from elsewhere"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_refused_at_every_door(kind: str, tmp_path: Path) -> None:
    family, changes, told = BROKEN[kind]
    folder = tmp_path / "model"
    tiny_model(family).save_pretrained(folder)
    change(folder, **changes)
    with pytest.raises(InputError, match=told) as error:
        check_checkpoint(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=told):
        dass.prune_checkpoint(folder, tmp_path / "out", tiny_tokens())
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_transformers_saves_is_whole(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model(family).save_pretrained(tmp_path, max_shard_size="30KB")
    check_checkpoint(tmp_path)
    assert caplog.text == ""
    assert class_to_name(tmp_path) is None


def test_what_a_model_makes_for_itself_may_be_stored_or_not(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    attention = "model.layers.0.self_attn"
    old = {f"{attention}.rotary_emb.inv_freq": torch.ones(4), f"{attention}.position_ids": torch.arange(8)[None]}
    change(tmp_path, lambda tensors: tensors.update(old))
    check_checkpoint(tmp_path)
    load_model(tmp_path)


def test_a_tied_head_may_be_stored_beside_equal_embeddings_or_instead_of_them(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDINGS].clone()}))
    check_checkpoint(tmp_path)
    change(tmp_path, lambda t: t.pop(EMBEDDINGS))
    check_checkpoint(tmp_path)
    assert torch.equal(load_model(tmp_path).state_dict()[EMBEDDINGS], tiny_model().state_dict()[EMBEDDINGS])


def test_an_adapter_beside_the_weights_is_not_put_onto_them(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    check_checkpoint(tmp_path)  # nothing but transformers would read it
    with pytest.raises(InputError, match=r"holds an adapter .* expected a whole model"):
        load_model(tmp_path)


def test_a_total_size_that_is_wrong_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="30KB")
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"metadata": {"total_size": 7}}))
    check_checkpoint(tmp_path)
    assert re.search(r"take 7 bytes \(total_size\), and they take \d+", caplog.text)


@pytest.mark.parametrize(("declared", "stored"), [("float16", "bfloat16"), ("bfloat16", "float32")])
def test_a_dtype_that_would_round_the_weights_is_refused(declared: str, stored: str, tmp_path: Path) -> None:
    tiny_model(dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    check_declared_dtype(tmp_path)
    change(tmp_path, dtype=declared)
    with pytest.raises(InputError, match=rf"says dtype {declared}, and the weights are stored as {stored}: .*sources"):
        check_declared_dtype(tmp_path)
    change(tmp_path, dtype="float32")
    check_declared_dtype(tmp_path)


@pytest.mark.parametrize("named", [None, [], ["LlamaModel"], ["LlamaForSequenceClassification"], ["OwnModel"], ["nn"]])
def test_the_class_that_generates_text_is_named(named: Any, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    change(tmp_path, architectures=named)
    assert class_to_name(tmp_path) == "LlamaForCausalLM"
