"""What a config declares, compared with what its checkpoint holds, before anything of that size is made."""

import json
import re
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.model.checkpoint import Checkpoint
from dass.model.checkpoint_folder import CONFIG_FILE

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_SIZES = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts"),
)
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


def check_config_bounds(checkpoint: Checkpoint) -> None:
    """Refuse a config that declares more layers than the tensors' names have, or a size that none of them has.

    A model is built from its config before a weight is read, so what is declared would be made: 100000 layers take
    gigabytes and an hour. Reads headers only. A config that cannot be read is left to who reads it.

    Raises:
        InputError: a number is larger than the checkpoint can have.
    """
    path = checkpoint.folder / CONFIG_FILE
    numbers = [int(number) for name in checkpoint.stored for number in _NUMBER.findall(name)]
    layers = max(numbers, default=-1) + 1
    largest = max([layers, *(size for place in checkpoint.stored.values() for size in place.shape)])
    for section in _sections(path):
        for names, most, of in ((_LAYERS, layers, "layers"), (_SIZES, largest, "entries along any axis")):
            for name in names:
                declared = section.get(name)
                if isinstance(declared, int) and declared > most:
                    raise InputError(
                        f"{path} says {name} is {declared}, and the checkpoint's tensors have at most {most} {of}: "
                        "they do not belong together. Fetch the checkpoint again."
                    )


def _sections(path: Path) -> list[dict[str, Any]]:
    """The config itself, and the one of its text model."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(config, dict):
        return []
    return [config, *(inner for key in ("text_config", "llm_config") if isinstance(inner := config.get(key), dict))]
