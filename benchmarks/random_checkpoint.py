"""Checkpoints of any shape with random weights, written shard by shard: no more than one shard is in memory."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from dass.errors import InputError
from dass.model.checkpoint_folder import INDEX_FILE
from dass.model.pretrained import untrained

SHARD_BYTES = 10**9
_STANDARD_DEVIATION = 0.02  # LLaMA's initialisation


def llama_config(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    vocabulary: int,
    context: int,
    key_heads: int | None = None,
) -> LlamaConfig:
    """A LLaMA with untied embeddings, bfloat16; heads share no keys unless `key_heads` says so."""
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_heads or heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def llama_2_7b(layers: int = 32) -> LlamaConfig:
    """LLaMA-2-7B's shape with any number of layers."""
    return llama_config(layers, hidden=4096, intermediate=11008, heads=32, vocabulary=32000, context=4096)


def llama_1b(layers: int = 16) -> LlamaConfig:
    """The decoder layers of LLaMA-3.2-1B, with heads that share no keys, and a small vocabulary."""
    return llama_config(layers, hidden=2048, intermediate=8192, heads=32, vocabulary=4096, context=4096)


def stored_bytes(config: LlamaConfig) -> int:
    """Size of the checkpoint's weights."""
    return sum(2 * math.prod(shape) for shape in _shapes(config).values())


def write_checkpoint(folder: Path, config: LlamaConfig, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json, shards of random bfloat16 weights and their index, as `save_pretrained` lays them out.

    Args:
        folder: made if it is not there.
        config: the model's shape.
        seed: of the weights. Norms are one.
        shard_bytes: a shard ends before it would exceed this, unless one tensor alone does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    shapes = _shapes(config)
    shards = list(_shards(shapes, shard_bytes))
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(shapes[name], generator) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        del tensors  # before the next shard is made
    index = {"metadata": {"total_size": stored_bytes(config)}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")


def ensure_checkpoint(folder: Path, config: LlamaConfig, spare_bytes: int = 0) -> None:
    """Write the checkpoint unless it is there.

    Args:
        folder: its name says the shape: what lies there is taken as it is.
        config: the model's shape.
        spare_bytes: what must stay free on the disk besides.

    Raises:
        InputError: the disk has less free than that takes.
    """
    is_written = (folder / INDEX_FILE).exists()  # the index is written last
    needed = spare_bytes + (0 if is_written else stored_bytes(config))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free and needs {needed / 1e9:.1f} GB. "
            "Make space, or give another --scratch or fewer --layers."
        )
    if not is_written:
        write_checkpoint(folder, config)


def random_tokens(windows: int, length: int, vocabulary: int) -> Tensor:
    """Uniformly random token ids, LongTensor (windows, length), seed 0."""
    return torch.randint(vocabulary, (windows, length), generator=torch.Generator().manual_seed(0))


def write_tokens(file: Path, windows: int, length: int, vocabulary: int) -> None:
    """Write random tokens as `input_ids`."""
    save_file({"input_ids": random_tokens(windows, length, vocabulary)}, file)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = untrained(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _shards(shapes: dict[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    used = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if names and used + size > shard_bytes:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    value = torch.empty(shape, dtype=torch.bfloat16)
    return value.fill_(1.0) if len(shape) == 1 else value.normal_(0.0, _STANDARD_DEVIATION, generator=generator)
