"""A GGUF file is one whole language model that holds what it declares, or it is refused in one line."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from dass.errors import InputError
from tasks.sources.gguf import convert_gguf
from tests.gguf_files import write_tiny_gguf
from tests.models import tiny_model

# Places in a tensor's entry, as gguf's reader splits it.
TYPE, OFFSET = 4, 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model())


def refused(file: Path, told: str) -> None:
    out = file.with_name("out")
    with pytest.raises(InputError, match=told) as error:
        convert_gguf(file, out, torch.float32)
    assert "\n" not in str(error.value)
    assert not out.exists()


def set_key(key: str, value: Any) -> Callable[[gguf.GGUFReader], None]:
    def edit(reader: gguf.GGUFReader) -> None:
        reader.fields[key].parts[-1][0] = value

    return edit


def move(tensor: int, by: int) -> Callable[[gguf.GGUFReader], None]:
    def edit(reader: gguf.GGUFReader) -> None:
        offset = reader.tensors[tensor].field.parts[OFFSET]
        offset[0] = int(offset[0]) + by

    return edit


def exchange(reader: gguf.GGUFReader) -> None:
    places = {tensor.name: tensor.field.parts[OFFSET] for tensor in reader.tensors}
    gate, up = places["blk.1.ffn_gate.weight"], places["blk.1.ffn_up.weight"]
    gate[0], up[0] = int(up[0]), int(gate[0])


def rename(old: str, new: str) -> Callable[[gguf.GGUFReader], None]:
    def edit(reader: gguf.GGUFReader) -> None:
        found = next(tensor for tensor in reader.tensors if tensor.name == old)
        found.field.parts[1][:] = list(new.encode())

    return edit


def set_type(kind: int) -> Callable[[gguf.GGUFReader], None]:
    def edit(reader: gguf.GGUFReader) -> None:
        reader.tensors[-1].field.parts[TYPE][0] = kind

    return edit


EDITED: dict[str, tuple[Callable[[gguf.GGUFReader], None], str]] = {
    "fewer blocks": (set_key("llama.block_count", 1), r"says that it has 1 blocks .* holds blk\.1 \(3 held\)"),
    "more blocks": (set_key("llama.block_count", 4), r"says that it has 4 blocks .* lacks blk\.3 \(3 held\)"),
    "blocks without end": (set_key("llama.block_count", 2**32 - 1), r"4294967295 blocks .* lacks blk\.3 \(3 held\)"),
    "heads without end": (
        set_key("llama.attention.head_count", 2**32 - 1),
        "head_count is 4294967295, and its tensors have at most 300 entries along any axis",
    ),
    "a vocabulary without end": (set_key("llama.vocab_size", 2**32 - 1), "vocab_size is 4294967295, and its tensors"),
    "overlap": (move(3, -32), r"blk\.\d.* begins at byte \d+ of the tensors' data: expected \d+"),
    "hole": (move(3, 32), "begins at byte"),
    "not aligned": (move(3, 4), "begins at byte"),
    "all moved": (move(0, 32), "begins at byte 32 of the tensors' data: expected 0"),
    "two exchanged": (exchange, "begins at byte"),
    "two of a name": (rename("blk.0.ffn_gate.weight", "blk.1.ffn_gate.weight"), r"two tensors called blk\.1\.ffn_gate"),
    "a name nobody knows": (rename("blk.0.ffn_gate.weight", "blk.0.ffn_gaze.weight"), "ffn_gaze|does not hold"),
    "a type nobody knows": (set_type(99), "is of ggml type 99, which is not known"),
    "a type of blocks": (set_type(12), r"not a multiple of the 256 of its type's blocks"),
    "another width": (
        set_key("llama.feed_forward_length", 48),
        r"is stored as \(64, 32\), .* says \(48, 32\)",
    ),
    "another hidden size": (set_key("llama.embedding_length", 64), r"is stored as .*, and the config says"),
    "another vocabulary": (set_key("llama.vocab_size", 299), r"\(300, 32\), and the config says \(299, 32\)"),
    "a token that is none": (set_key("tokenizer.ggml.bos_token_id", 300), "no tokenizer can be made of its vocabulary"),
}


@pytest.mark.parametrize("kind", EDITED)
def test_what_it_declares_and_does_not_hold_is_refused(whole: Path, tmp_path: Path, kind: str) -> None:
    edit, told = EDITED[kind]
    file = Path(shutil.copy(whole, tmp_path / "tiny.gguf"))
    reader = gguf.GGUFReader(file, "r+")
    edit(reader)
    reader.data.flush()
    refused(file, told)


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "the first part": (
        {"split.count": 3, "split.no": 0},
        r"is part 1 of 3 of a split GGUF: expected .*merge",
    ),
    "an adapter": ({"general.type": "adapter"}, "general.type 'adapter': expected 'model'.* Merge it into its base"),
    "a projector": ({"general.type": "mmproj"}, "general.type 'mmproj': expected 'model', a whole language model"),
    "scaled": (
        {"llama.rope.scaling.type": "yarn"},
        r"rope\.scaling\.type is 'yarn'\), which transformers does not",
    ),
    "alignment": ({"general.alignment": 24}, "general.alignment 24: expected a power of two"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_no_whole_model_is_refused(tmp_path: Path, kind: str) -> None:
    keys, told = KEYS[kind]
    refused(write_tiny_gguf(tmp_path / "tiny.gguf", tiny_model(), keys), told)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.ffn_gate_exps.weight", "x.lora_a"])
def test_a_tensor_that_transformers_leaves_out_is_refused(tmp_path: Path, name: str) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_model(), tensors={name: torch.ones(32)})
    refused(file, rf"holds {name} \(1 such\), which transformers leaves out")


def test_another_part_of_a_split_file_is_known_by_what_it_says(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny-00002-of-00003.gguf", "llama")
    del writer.kv_data[0]["general.architecture"]
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_tensor("blk.1.ffn_up.weight", torch.ones(64, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "tiny-00002-of-00003.gguf", "is part 2 of 3 of a split GGUF: expected one whole file")


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_model(), endianess=gguf.GGUFEndian.BIG)
    refused(file, "is a big-endian GGUF file: expected little-endian")


def test_bytes_behind_the_last_tensor_are_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(whole.read_bytes() + bytes(64))
    refused(tmp_path / "tiny.gguf", r"has 64 bytes behind the \d+ tensors it declares")


def test_a_file_that_was_cut_off_says_where(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(whole.read_bytes()[:-1000])
    refused(tmp_path / "tiny.gguf", r"is cut off: .* ends at byte \d+, and the file has \d+")


def test_counts_that_no_file_can_hold_end_at_once(whole: Path, tmp_path: Path) -> None:
    for place in (8, 16):  # how many tensors, how many keys
        content = bytearray(whole.read_bytes())
        struct.pack_into("<Q", content, place, 2**62)
        (tmp_path / "tiny.gguf").write_bytes(content)
        refused(tmp_path / "tiny.gguf", rf"it declares {2**62} (tensors|keys), and {len(content)} bytes hold at most")


@pytest.mark.parametrize(("kind", "count"), [(0, 10 << 30), (4, 2**62), (8, 2**62), (8, 1 << 30)])
def test_an_array_without_end_in_a_file_of_any_size_is_not_read(tmp_path: Path, kind: int, count: int) -> None:
    file = tmp_path / "tiny.gguf"
    key = b"tokenizer.ggml.tokens"
    file.write_bytes(
        struct.pack("<4sIQQQ", b"GGUF", 3, 1, 1, len(key)) + key + struct.pack("<IIQ", 9, kind, count) + b"x" * 64
    )
    os.truncate(file, 20 << 30)
    refused(file, r"not a whole GGUF file \(.*; its metadata and the names of its tensors may take 67108864 bytes\)")


def test_names_and_axes_without_end_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    for rest in (struct.pack("<Q", 10 << 30), struct.pack("<Q4sI", 4, b"name", 2**32 - 1)):
        file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + rest)
        os.truncate(file, 20 << 30)
        refused(file, "not a whole GGUF file .*may take 67108864 bytes")


@pytest.mark.parametrize("key", ["split.count", "llama.block_count"])
def test_a_count_that_is_no_number_is_named(tmp_path: Path, key: str) -> None:
    refused(write_tiny_gguf(tmp_path / "tiny.gguf", tiny_model(), {key: "3"}), f"has a {key} that is no whole number")


def test_an_architecture_without_a_tokenizer_is_no_language_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "clip.gguf", "clip")
    writer.add_tensor("v.patch_embd.weight", torch.ones(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "clip.gguf", r"holds no tokenizer\.ggml\.tokens: expected a GGUF of a language model")
