"""What a checkpoint's JSON files refer to and its copy does not have: the copy loses those keys.

`auto_map` and `custom_pipelines` name code, which does not travel; how weights were quantized, compressed or made
sparse does not hold for weights that are plain, and then pruned.
"""

import json
from pathlib import Path
from typing import Any

KEYS = ("auto_map", "custom_pipelines", "quantization_config", "compression_config", "sparsity_config")
"""At any depth."""


def drop_references(folder: Path) -> list[str]:
    """Take such keys out of the configs in a copied checkpoint; the other files stay byte for byte.

    Args:
        folder: the copy; its files named *config.json are looked at (config, tokenizer_config, processor_config, ...).

    Returns:
        What was dropped, as "config.json: auto_map, quantization_config"; empty where there is nothing to say.
    """
    dropped = []
    for path in sorted(folder.glob("*config.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # no JSON: whoever needs it says so
        keys: list[str] = []
        kept = _without(values, keys)
        if keys:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            dropped.append(f"{path.name}: {', '.join(dict.fromkeys(keys))}")
    return dropped


def _without(value: Any, keys: list[str]) -> Any:
    if isinstance(value, list):
        return [_without(entry, keys) for entry in value]
    if not isinstance(value, dict):
        return value
    found = [key for key, entry in value.items() if key in KEYS and entry is not None]
    keys += found
    return {key: _without(entry, keys) for key, entry in value.items() if key not in found}
