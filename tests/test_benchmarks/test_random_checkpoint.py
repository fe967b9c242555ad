import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks import random_checkpoint
from benchmarks.random_checkpoint import ensure_checkpoint, llama_2_7b, llama_config, stored_bytes, write_checkpoint
from dass.errors import InputError
from dass.model.checkpoint import Checkpoint

TINY = llama_config(layers=3, hidden=32, intermediate=64, heads=4, vocabulary=300, context=128)


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, shard_bytes=20_000)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    model, loading = loaded
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert 0.015 < model.model.layers[2].mlp.up_proj.weight.float().std() < 0.025


def test_shards_stay_within_their_size_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert len(shards) > 3
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in shards]
    assert max(sizes) <= 20_000
    assert sum(sizes) == stored_bytes(TINY) == index["metadata"]["total_size"]
    assert set(Checkpoint(tmp_path).stored) == set(index["weight_map"])


def test_the_7b_shape_is_13_and_a_half_gigabytes() -> None:
    assert stored_bytes(llama_2_7b()) == 2 * 6_738_415_616  # LLaMA-2-7B's parameters


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoint, "stored_bytes", lambda _: 10**18)
    with pytest.raises(InputError, match=r"GB free and needs 1000000000\.0 GB\. Make space"):
        ensure_checkpoint(tmp_path / "model", TINY)
    assert not list((tmp_path / "model").iterdir())


def test_what_was_written_is_not_written_again(tmp_path: Path) -> None:
    ensure_checkpoint(tmp_path, TINY)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    ensure_checkpoint(tmp_path, TINY)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
