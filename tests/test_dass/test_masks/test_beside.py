"""Every file beside the weights is proved against the base, whatever was changed in it is named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dass.files import read_json, sha256_file, write_json
from dass.masks.beside import difference, prove_beside
from dass.masks.mask_file import apply_to_checkpoint
from dass.masks.proof import ProofError
from dass.model.checkpoint import Checkpoint
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_model

SETTINGS = {"method": "dass"}


def make_base(folder: Path, family: str = "llama") -> Path:
    save_tiny_checkpoint(folder, family)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "LICENSE").write_text("the terms")
    (folder / "README.md").write_text("the dense model's card")
    values = read_json(folder / "tokenizer_config.json") | {"auto_map": {"AutoTokenizer": "tokenizer.Mine"}}
    write_json(folder / "tokenizer_config.json", values)
    return folder


def prune(base: Path, folder: Path) -> Path:
    folder.mkdir()
    apply_to_checkpoint(Checkpoint(base), {}, folder, settings=SETTINGS)
    return folder


def proved(base: Path, pruned: Path, **asked: Any) -> list[str]:
    weights = {path.name: sha256_file(path) for path in pruned.glob("*.safetensors")}
    return prove_beside(base, pruned, weights, asked.get("settings", SETTINGS), asked.get("history"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    prune(make_base(folder / "base"), folder / "pruned")
    return folder


@pytest.fixture
def pair(template: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base and its pruned checkpoint."""
    copied = shutil.copytree(template, tmp_path / "pair")
    return copied / "base", copied / "pruned"


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_what_was_written_is_proved(family: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family)
    pruned = prune(base, tmp_path / "pruned")
    assert set(proved(base, pruned)) == {
        path.relative_to(pruned).as_posix() for path in pruned.rglob("*") if path.is_file()
    } - {"model.safetensors"}


def test_shards_and_their_index_are_proved(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    tiny_model().save_pretrained(base, max_shard_size="60KB")
    pruned = prune(base, tmp_path / "pruned")
    assert "model.safetensors.index.json" in proved(base, pruned)
    index = read_json(pruned / "model.safetensors.index.json")
    index["metadata"]["total_size"] += 1
    write_json(pruned / "model.safetensors.index.json", index)
    with pytest.raises(ProofError, match=r"^model.safetensors.index.json: metadata.total_size is \d+, expected \d+"):
        proved(base, pruned)


def test_a_base_that_was_pruned_before_is_told_in_the_record(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = pair
    (tmp_path / "again").mkdir()
    earlier = {"settings": {"method": "wanda"}, "base": None}
    apply_to_checkpoint(Checkpoint(base), {}, tmp_path / "again", settings=SETTINGS, history=earlier)
    proved(base, tmp_path / "again", history=earlier)
    with pytest.raises(ProofError, match=r"dass.json: base is \{.*\}, expected null"):
        proved(base, tmp_path / "again")


def put(key: str, value: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        write_json(file, read_json(file) | {key: value})

    return change


def add(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text() + text)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.json", put("rms_norm_eps", 0.5), "config.json: rms_norm_eps is 0.5, expected 1e-06"),
        (
            "config.json",
            put("auto_map", {"A": "b.C"}),
            r'config.json: auto_map is \{"A": "b.C"\}, expected no such key',
        ),
        ("config.json", add(" "), "config.json: it holds the expected values, and is written in another way"),
        ("config.json", lambda file: file.write_text("{"), "config.json: it differs from the expected bytes"),
        ("generation_config.json", put("eos_token_id", 7), "generation_config.json: eos_token_id is 7, expected 1"),
        ("tokenizer.json", put("truncation", {"n": 1}), r'tokenizer.json: truncation is \{"n": 1\}, expected null'),
        ("tokenizer_config.json", put("chat_template", "x"), 'chat_template is "x", expected no such key'),
        ("tokenizer_config.json", put("a\x1b[2J", 1), r"tokenizer_config.json: a\\u001b\[2J is 1"),
        ("chat_template.jinja", add(" "), "chat_template.jinja: it differs from the expected bytes"),
        ("additional_chat_templates/tools.jinja", add("x"), "additional_chat_templates/tools.jinja: it differs"),
        ("LICENSE", add("x"), "LICENSE: it differs"),
        ("BASE_README.md", add("x"), "BASE_README.md: it differs"),
        ("dass.json", put("settings", {"method": "wanda"}), 'dass.json: settings.method is "wanda", expected "dass"'),
        ("dass.json", put("files", {}), "dass.json: files.BASE_README.md is missing"),
        ("tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("modeling.py", Path.touch, "modeling.py is extra"),
        ("README.md", Path.touch, "README.md is extra"),
        ("source.json", Path.touch, "source.json is extra"),
    ],
)
def test_a_changed_file_is_named(pair: tuple[Path, Path], name: str, change: Callable[[Path], Any], told: str) -> None:
    base, pruned = pair
    change(pruned / name)
    with pytest.raises(ProofError, match=told):
        proved(base, pruned)


def test_a_flipped_byte_is_seen_in_every_file(pair: tuple[Path, Path]) -> None:
    base, pruned = pair
    for name in proved(base, pruned):
        before = (pruned / name).read_bytes()
        for at in (0, len(before) // 2, len(before) - 1):
            (pruned / name).write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
            with pytest.raises(ProofError, match=f"^{name}: "):
                proved(base, pruned)
        (pruned / name).write_bytes(before)


def test_a_pipe_is_no_file(pair: tuple[Path, Path]) -> None:
    _, pruned = pair
    (pruned / "LICENSE").unlink()
    os.mkfifo(pruned / "LICENSE")
    assert difference(pruned / "config.json", pruned / "LICENSE") == "it is no file"
