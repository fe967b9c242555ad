"""What of a checkpoint folder goes along with the weights that are read, and what stays behind."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dass
from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file
from dass.masks.pruned_record import RECORD, read_record
from dass.model.checkpoint_folder import contents, weight_files
from tests.models import save_tiny_checkpoint, tiny_model, tiny_tokens

OTHER_WEIGHTS = (
    *("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors", "lora.safetensors"),
    *("pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model.gguf", "model.onnx", "flax_model.msgpack"),
    *("tf_model.h5", "model.npz", "model-00001-of-00002.safetensors", "license.safetensors", "tokenizer.bin"),
)
OTHER_FILES = (
    *("adapter_config.json", "pytorch_model.bin.index.json", "params.json", "trainer_state.json", "modeling_own.py"),
    *("model.safetensors.index.json", "notes.txt"),
)
COMPANIONS = (
    *("generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
    *("preprocessor_config.json", "LICENSE", "License.txt", "LICENCE.md", "NOTICE", "USE_POLICY.md", "COPYING"),
)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")


@pytest.fixture
def crowded(tiny_checkpoint: Path) -> Path:
    """A checkpoint with everything that repositories hold beside one."""
    write(tiny_checkpoint, *OTHER_WEIGHTS, *OTHER_FILES, *COMPANIONS, "original/consolidated.00.pth", ".gitattributes")
    (tiny_checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The dense model\n", encoding="utf-8")
    (tiny_checkpoint / "source.json").write_text('{"digest": "of the dense model"}', encoding="utf-8")
    return tiny_checkpoint


def pruned_quietly(*arguments: Any, **options: Any) -> dass.CheckpointReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dass.prune_checkpoint(*arguments, **options)


def test_only_what_was_read_goes_into_the_pruned_folder(crowded: Path, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"Left behind in .*model, not part of the checkpoint that is read: adapter_config\.json, "
    ):
        report = dass.prune_checkpoint(crowded, tmp_path / "pruned", tiny_tokens())
    found = set(files_in(tmp_path / "pruned"))
    read = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert found == {*read, *COMPANIONS, "BASE_README.md", RECORD}
    assert report.left == sorted([*OTHER_WEIGHTS, *OTHER_FILES, "original/"])
    assert set(read_record(tmp_path / "pruned")["files"]) == found - {RECORD}  # type: ignore[index]


def test_a_folder_with_nothing_else_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = dass.prune_checkpoint(tiny_checkpoint, tmp_path / "pruned", tiny_tokens())
    assert report.left == []
    assert {path.name for path in tiny_checkpoint.iterdir()} | {RECORD} == set(os.listdir(tmp_path / "pruned"))


def test_shards_and_their_index_are_read_and_a_single_file_of_another_format_is_not(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model().save_pretrained(model, max_shard_size="40KB")
    save_file({"x": torch.zeros(4)}, model / "consolidated.safetensors")
    found = contents(model)
    assert len(found.weights) > 2
    assert found.weights == [*weight_files(model), "model.safetensors.index.json"]
    assert found.left == ["consolidated.safetensors"]


def test_many_files_left_behind_are_one_short_line(tiny_checkpoint: Path) -> None:
    write(tiny_checkpoint, *(f"shard-{number}.bin" for number in range(40)))
    line = contents(tiny_checkpoint).told(tiny_checkpoint)
    assert line is not None
    assert line.endswith("shard-15.bin and 32 more")
    assert "\n" not in line


def test_an_index_without_its_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.safetensors is missing\. Fetch"):
        contents(tmp_path)


def test_nothing_in_the_pruned_folder_claims_to_be_the_dense_model(crowded: Path, tmp_path: Path) -> None:
    config = read_json(crowded / "config.json")
    (crowded / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/someone/dense"}))
    pruned = tmp_path / "pruned"
    pruned_quietly(crowded, pruned, tiny_tokens(), pattern="2:4")
    assert not (pruned / "source.json").exists()
    assert not (pruned / "README.md").exists()
    assert (pruned / "BASE_README.md").read_bytes() == (crowded / "README.md").read_bytes()
    written = read_json(pruned / "config.json")
    assert written.items() >= config.items()
    assert "_name_or_path" not in written
    record = read_json(pruned / RECORD)
    assert record["files"] == {name: sha256_file(pruned / name) for name in sorted(files_in(pruned)) if name != RECORD}
    assert (record["settings"]["pattern"], record["settings"]["sparsity"], record["base"]) == ("2:4", 0.5, None)
    tiny_tokens_again = tmp_path / "again"
    pruned_quietly(crowded, tiny_tokens_again, tiny_tokens(), pattern="2:4")
    assert (tiny_tokens_again / RECORD).read_bytes() == (pruned / RECORD).read_bytes()


def test_a_pruned_folder_may_be_pruned_again_and_that_is_told(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    (base / "README.md").write_text("# The dense model", encoding="utf-8")
    pruned_quietly(base, tmp_path / "first", tiny_tokens(), sparsity=0.25)
    with pytest.warns(
        UserWarning, match=r"first was pruned before \(dass, unstructured, 0\.25\): its zeros are part of"
    ):
        dass.prune_checkpoint(tmp_path / "first", tmp_path / "second", tiny_tokens(), pattern="2:4")
    record = read_json(tmp_path / "second" / RECORD)
    assert record["settings"]["pattern"] == "2:4"
    assert record["base"]["settings"]["sparsity"] == 0.25
    assert set(record["files"]) == set(read_json(tmp_path / "first" / RECORD)["files"])
    assert (tmp_path / "second" / "BASE_README.md").read_text(encoding="utf-8") == "# The dense model"
