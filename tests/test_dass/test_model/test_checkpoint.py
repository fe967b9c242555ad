"""A checkpoint folder: read exactly, and refused in one line before any work where it cannot be."""

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dass.digests import digests_of
from dass.errors import InputError
from dass.model.checkpoint import Checkpoint
from dass.model.streaming import StreamedDecoder
from tests.models import tiny_model

CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in several shards."""
    tiny_model().save_pretrained(tmp_path, max_shard_size="30KB")
    return tmp_path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A checkpoint in one file."""
    tiny_model().save_pretrained(tmp_path)
    return tmp_path


def change_tensor(folder: Path, name: str, value: torch.Tensor | None, new_name: str | None = None) -> None:
    """Put another tensor, or none, into a single-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if value is not None:
        tensors[new_name or name] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path, match: str) -> None:
    """The folder is refused in one line that says what to do, and is left as it was."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=match) as caught:
        StreamedDecoder(folder, CPU)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked to read ahead")
def test_the_system_is_asked_for_the_bytes_of_the_tensors_and_no_others(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, names = Checkpoint(sharded), [GATE, "model.embed_tokens.weight"]
    asked: set[tuple[str, int]] = set()

    def note(handle: int, begin: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        file = next(path.name for path in sharded.iterdir() if path.samefile(f"/proc/self/fd/{handle}"))
        asked.update((file, at) for at in range(begin, begin + size))

    monkeypatch.setattr(os, "posix_fadvise", note)
    monkeypatch.setattr("dass.model.checkpoint._READ_AHEAD_BYTES", 1000)

    checkpoint.will_need(names)

    places = [(checkpoint.file_of[name], checkpoint.stored[name]) for name in names]
    assert asked == {(file, at) for file, place in places for at in range(place.begin, place.end)}
    sharded.joinpath(checkpoint.file_of[GATE]).unlink()
    checkpoint.will_need(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_are_read_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    expected = {
        "matrix": torch.randn(5, 7).to(dtype),
        "scalar": torch.tensor(3.5, dtype=dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    save_file(expected, tmp_path / "model.safetensors")
    loaded = Checkpoint(tmp_path).load(expected)
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == dtype for name, value in expected.items())


def test_a_tensor_is_read_into_a_part_of_another(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    whole = torch.zeros(3, 2, 3)
    checkpoint.read_into("a", whole[1])
    assert torch.equal(whole[1], torch.arange(6.0).view(2, 3))
    assert not whole[0].any()
    assert not whole[2].any()
    beside, wide = torch.zeros(2, 6), torch.zeros(2, 3, dtype=torch.float64)
    checkpoint.read_into("a", beside[:, 3:])  # strided
    checkpoint.read_into("a", wide)
    assert torch.equal(beside[:, 3:], whole[1])
    assert torch.equal(wide, whole[1].double())


def test_a_copy_with_nothing_changed_is_the_same_bytes(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("copy")
    Checkpoint(sharded).copy(target, lambda name, value: None)
    for path in target.iterdir():
        assert path.read_bytes() == (sharded / path.name).read_bytes()
    assert {path.name for path in target.iterdir()} == {path.name for path in sharded.glob("model*")}


def test_a_copy_keeps_tensors_it_does_not_understand(single: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    change_tensor(single, GATE, torch.arange(9), "positions")
    target = tmp_path_factory.mktemp("copy")
    Checkpoint(single).copy(target, lambda name, value: value * 2)
    with safe_open(target / "model.safetensors", "pt") as copied, safe_open(single / "model.safetensors", "pt") as base:
        assert torch.equal(copied.get_tensor("positions"), torch.arange(9))
        assert torch.equal(copied.get_tensor("model.norm.weight"), base.get_tensor("model.norm.weight") * 2)


@pytest.mark.parametrize("md5", [False, True])
def test_a_copy_tells_the_digests_of_what_it_wrote(
    md5: bool, sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = Checkpoint(sharded).file_of[GATE]
    tensors = load_file(sharded / name) | {"positions": torch.arange(9), "empty": torch.empty(0, 4)}
    save_file(tensors, sharded / "model.safetensors", {"format": "pt"})
    target = tmp_path_factory.mktemp("copy")
    told = Checkpoint(sharded).copy(target, lambda name, value: value * 2, md5)
    assert told.keys() == {path.name for path in target.glob("*.safetensors")}
    assert told == {name: digests_of(target / name, md5) for name in told}
    assert all((each.md5 is not None) == md5 for each in told.values())


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = Checkpoint(sharded).files[1]
    (sharded / shard).unlink()
    refused(sharded, f"{shard} is missing. Fetch")


@pytest.mark.parametrize("left", [-100, 200, 5, 0])
def test_a_truncated_shard_is_named(left: int, sharded: Path) -> None:
    path = sharded / Checkpoint(sharded).files[1]
    path.write_bytes(path.read_bytes()[:left])
    refused(sharded, f"{path.name} is damaged or truncated .* Fetch")


def test_a_shard_cut_short_while_it_is_open_is_named(single: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = Checkpoint(single)
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    last = max(checkpoint.stored, key=lambda name: checkpoint.stored[name].end)
    with pytest.raises(InputError, match=r"model\.safetensors was cut short"):
        checkpoint.load([last])
    with pytest.raises(InputError, match=r"model\.safetensors was cut short"):
        checkpoint.copy(tmp_path_factory.mktemp("copy"), lambda name, value: None)


def test_an_index_that_names_an_absent_tensor_is_refused(sharded: Path) -> None:
    index = sharded / INDEX
    index.write_text(index.read_text().replace("layers.1.mlp.up_proj", "layers.1.mlp.sideways_proj"))
    refused(sharded, r"sideways_proj\.weight, and it does not. Fetch")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "index.json is not JSON"),
        ("\x00", "index.json is not JSON"),
        ("[" * 100_000, "index.json is not JSON"),
        ("{}", 'index.json has no "weight_map"'),
        ("[]", 'index.json has no "weight_map"'),
        ('{"weight_map": []}', 'index.json has no "weight_map"'),
        ('{"weight_map": {}}', 'index.json has no "weight_map"'),
        ('{"weight_map": {"a": 1}}', "index.json says a is in 1: expected the name of a file"),
    ],
)
def test_a_damaged_index_is_refused(text: str, match: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    refused(sharded, match)


def test_an_index_has_a_largest_size(sharded: Path) -> None:
    os.truncate(sharded / INDEX, 20 << 30)
    with pytest.raises(InputError, match="has 21474836480 bytes: expected an index of at most 100000000. Fetch"):
        Checkpoint(sharded)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 90_000_000, 200_000_000])
@pytest.mark.parametrize("size", [1000, 20 << 30])
def test_a_header_is_as_long_as_its_file_and_the_bound_allow(length: int, size: int, single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    os.truncate(file, size)
    with pytest.raises(InputError, match="model.safetensors is damaged or truncated"):
        Checkpoint(single)


@pytest.mark.parametrize("shape", [[0, 2**62, 4], [2**64 - 1, 0]])
def test_a_shape_that_no_tensor_has_is_named(shape: list[int], single: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (single / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(single, r"holds w of shape \(.*\), which no tensor has. Fetch")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\x"])
def test_an_index_that_leaves_its_folder_is_refused(file: str, sharded: Path) -> None:
    content = json.loads((sharded / INDEX).read_text())
    content["weight_map"][GATE] = file
    (sharded / INDEX).write_text(json.dumps(content))
    refused(sharded, f"says {GATE} is in {re.escape(repr(file))}: expected the name of a file beside it")


def test_a_file_without_tensors_is_refused(single: Path) -> None:
    save_file({}, single / "model.safetensors")
    refused(single, "holds no tensor")


@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"), (torch.int8, "I8"), (torch.uint8, "U8")],
)
def test_quantized_weights_are_refused_by_name(dtype: torch.dtype, spelled: str, single: Path) -> None:
    change_tensor(single, GATE, torch.ones(64, 32).to(dtype))
    refused(single, f"{re.escape(GATE)} is stored as {spelled}: expected float32, bfloat16 or float16")


def test_packed_weights_are_refused_by_name(single: Path) -> None:
    change_tensor(single, GATE, torch.ones(4, 64, dtype=torch.int32), GATE.replace("weight", "qweight"))
    refused(single, r"gate_proj\.qweight is stored as I32")


@pytest.mark.parametrize(
    ("quantization", "named"), [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"bits": 4}, "unnamed"), ("awq", "awq")]
)
def test_a_quantized_config_is_refused(quantization: Any, named: str, single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    refused(single, rf"config\.json has a quantization_config \({named}\)")


def test_position_ids_and_attention_masks_are_no_weights(single: Path) -> None:
    tensors = load_file(single / "model.safetensors")
    attention = "model.layers.0.self_attn"
    tensors |= {f"{attention}.position_ids": torch.arange(8)[None], f"{attention}.rotary_emb.inv_freq": torch.ones(4)}
    tensors |= {f"{attention}.masked_bias": torch.ones(4, 4, dtype=torch.bool)}
    save_file(tensors, single / "model.safetensors")
    StreamedDecoder(single, CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "nobody_knows"},
        {"model_type": "t5"},
        {"hidden_size": "wide"},
        {"hidden_act": "nothing"},
        {"hidden_size": 33},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 4},
        {"intermediate_size": 48},
    ],
)
def test_a_config_that_makes_no_model_or_another_is_refused(change: dict[str, Any], single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | change))
    refused(
        single,
        "transformers does not read|can make a causal LM|is an encoder-decoder|no list of 0 decoder layers|"
        "does not hold|the config says|do not belong together",
    )


@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_a_damaged_config_is_refused(text: str, single: Path) -> None:
    (single / "config.json").write_text(text)
    refused(single, "is not a transformers config")
