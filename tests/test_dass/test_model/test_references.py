"""A copy of a checkpoint does not refer to what it does not have."""

import json
from pathlib import Path
from typing import Any

from dass.model.references import drop_references


def test_keys_that_refer_outside_are_dropped_at_any_depth_and_named(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model_type": "llama",
        "auto_map": {"AutoModel": "own.Model"},
        "quantization_config": None,
    }
    config |= {"text_config": {"compression_config": {"bits": 4}, "hidden_size": 8}, "parts": [{"sparsity_config": {}}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.T", null]}, "é": 1}')
    assert drop_references(tmp_path) == [
        "config.json: auto_map, compression_config, sparsity_config",
        "tokenizer_config.json: auto_map",
    ]
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "model_type": "llama",
        "quantization_config": None,
        "text_config": {"hidden_size": 8},
        "parts": [{}],
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"é": 1}
    assert drop_references(tmp_path) == []


def test_other_files_keep_their_bytes(tmp_path: Path) -> None:
    contents = {"config.json": '{"a":1}', "generation_config.json": "no JSON", "tokenizer.json": '{"auto_map": 1}'}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    assert drop_references(tmp_path) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents
