"""A config that declares what the checkpoint does not hold is refused before a model of that size is made."""

from pathlib import Path

import pytest

import dass
from dass.errors import InputError
from dass.files import read_json, write_json
from dass.model.checkpoint import Checkpoint
from dass.model.config_bounds import check_config_bounds
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_tokens


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_transformers_saves_is_within_its_bounds(tmp_path: Path, family: str) -> None:
    check_config_bounds(Checkpoint(save_tiny_checkpoint(tmp_path, family)))


def test_a_hundred_thousand_layers_are_refused_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = read_json(tiny_checkpoint / "config.json")
    write_json(tiny_checkpoint / "config.json", config | {"num_hidden_layers": 100_000})
    with pytest.raises(InputError, match=r"num_hidden_layers is 100000, .* at most 3 layers"):
        dass.prune_checkpoint(tiny_checkpoint, tmp_path / "out", tiny_tokens())
    write_json(tiny_checkpoint / "config.json", {"text_config": config | {"vocab_size": 10**9}})
    with pytest.raises(InputError, match="vocab_size is 1000000000"):
        check_config_bounds(Checkpoint(tiny_checkpoint))
