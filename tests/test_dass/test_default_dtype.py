"""Torch's default type is the process's, and another thread that makes a model changes it for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import dass
from dass.measures.losses import token_losses
from tests.models import save_tiny_checkpoint, tiny_model, tiny_tokens

OPTIONS: list[dict[str, Any]] = [
    {},
    {"pattern": "2:4"},
    {"method": "wanda", "allocation": "owl"},
    {"method": "sparsegpt"},
    {"update": "reconstruct"},
    {"update": "reconstruct-mlp"},
    {"update": "reconstruct-block"},
    {"pattern": "2:4", "refine": "swaps"},
    {"method": "auto"},
]


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_changes_no_weight(family: str, options: dict[str, Any]) -> None:
    plain, other = tiny_model(family), tiny_model(family)
    dass.prune(plain, tiny_tokens(samples=8), **options)
    with default(torch.bfloat16):
        dass.prune(other, tiny_tokens(samples=8), **options)
    for name, value in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_it_changes_no_byte_of_a_checkpoint(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "dense")
    dass.prune_checkpoint(folder, tmp_path / "plain", tiny_tokens())
    with default(torch.bfloat16):
        dass.prune_checkpoint(folder, tmp_path / "other", tiny_tokens())
    plain, other = (tmp_path / name / "model.safetensors" for name in ("plain", "other"))
    assert other.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_it_changes_no_loss(family: str) -> None:
    model = tiny_model(family)
    plain = token_losses(model, tiny_tokens())
    with default(torch.bfloat16):
        assert torch.equal(token_losses(model, tiny_tokens()), plain)
