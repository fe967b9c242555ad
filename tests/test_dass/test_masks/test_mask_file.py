"""Mask files."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dass.errors import InputError
from dass.masks.mask_file import MaskFile, save_masks
from dass.masks.packing import pack_mask
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern

UNSTRUCTURED = torch.rand(16, 24, generator=torch.Generator().manual_seed(1)) < 0.5
TWO_OF_FOUR = keep_mask(torch.rand(16, 24, generator=torch.Generator().manual_seed(0)), parse_pattern("2:4"), 1)
ENCODINGS = {"grouped": "2:4 along axis 1", "loose": "bits"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one mask in groups and one of bits."""
    save_masks({"grouped": TWO_OF_FOUR, "loose": UNSTRUCTURED}, tmp_path / "m")
    return tmp_path / "m"


def rewrite(path: Path, header: dict[str, Any] | str | None = None, **tensors: Any) -> None:
    """Write the file again with other tensors or keys of the header, or with other text as its header."""
    text = header if isinstance(header, str) else json.dumps({**MaskFile(path).metadata, **(header or {})})
    save_file({**load_file(path), **tensors}, path, {"dass": text})


def test_equal_masks_are_equal_bytes(tmp_path: Path) -> None:
    keep = {"a": TWO_OF_FOUR, "b": torch.tensor([[False], [True]])}
    contents = set()
    for _ in range(20):
        save_masks(keep, tmp_path / "m", {"report": "x", "more": "y"})
        contents.add((tmp_path / "m").read_bytes())
    assert len(contents) == 1


def test_further_strings_come_back_with_the_masks(tmp_path: Path) -> None:
    save_masks({"a": torch.tensor([[True, False]])}, tmp_path / "m", {"report": "x"})
    masks = MaskFile(tmp_path / "m")
    assert masks.metadata["report"] == "x"
    assert torch.equal(masks["a"], torch.tensor([[True, False]]))


def test_each_mask_comes_back_from_the_encoding_its_bits_allow(path: Path) -> None:
    masks = MaskFile(path)
    assert masks.metadata["encodings"] == ENCODINGS
    assert dict(masks).keys() == {"grouped", "loose"}
    assert torch.equal(masks["grouped"], TWO_OF_FOUR)
    assert torch.equal(masks["loose"], UNSTRUCTURED)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("pattern", "bits"), [("2:4", 0.75), ("1:4", 0.55), ("4:8", 0.82), ("unstructured", 1.05)])
def test_a_file_takes_so_many_bits_a_weight(tmp_path: Path, pattern: str, bits: float, axis: int) -> None:
    scores = torch.rand(512, 768, generator=torch.Generator().manual_seed(0))
    save_masks({"w": keep_mask(scores, parse_pattern(pattern), axis)}, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size * 8 <= bits * scores.numel()


def test_the_digest_does_not_depend_on_the_encoding(path: Path) -> None:
    digest = MaskFile(path).digest
    rewrite(path, {"encodings": {**ENCODINGS, "grouped": "bits"}}, grouped=pack_mask(TWO_OF_FOUR))
    assert torch.equal(MaskFile(path)["grouped"], TWO_OF_FOUR)
    assert MaskFile(path).digest == digest


def test_the_digest_is_over_one_bit_a_weight(tmp_path: Path) -> None:
    save_masks({"w": torch.tensor([[True, False] * 8, [False, True] * 8])}, tmp_path / "m")
    assert MaskFile(tmp_path / "m").digest == "3a743fa2bd393a2cb8b35929dcbae46c5b10bc587ee5b17175c2239e337411c3"


def test_a_missing_file_and_files_of_other_formats_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="No mask file .*absent. Prune first: dass run"):
        MaskFile(path.with_name("absent"))
    rewrite(path, {"format": "dass-masks-1"})
    with pytest.raises(InputError, match="m is not a mask file of format dass-masks-2"):
        MaskFile(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="m is not a mask file of format dass-masks-2"):
        MaskFile(path)


def test_a_pipe_and_a_folder_are_no_mask_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="is no file: expected a mask file"):
            MaskFile(path)


def test_a_header_that_is_longer_than_the_file_is_named(path: Path) -> None:
    content = path.read_bytes()
    for length in (90_000_000, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(InputError, match="m is damaged"):
            MaskFile(path)


def test_a_cut_file_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="m is damaged"):
        MaskFile(path)


def test_a_header_that_is_not_utf_8_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"2:4 along", b"2:4 \xfflong", 1))
    with pytest.raises(InputError, match="m is damaged"):
        MaskFile(path)


@pytest.mark.parametrize("header", ["{", "[1]", "7", '{"a": }', "[" * 100_000])
def test_a_header_that_is_no_json_object_is_named(path: Path, header: str) -> None:
    rewrite(path, header)
    with pytest.raises(InputError, match="m is damaged .its header is not"):
        MaskFile(path)


@pytest.mark.parametrize("key", ["shapes", "encodings"])
@pytest.mark.parametrize("value", [None, 1, "x", ["grouped"]])
def test_a_header_without_shapes_or_encodings_is_named(path: Path, key: str, value: Any) -> None:
    rewrite(path, {key: value})
    with pytest.raises(InputError, match="m is damaged .its header lacks the shapes or the encodings"):
        MaskFile(path)


@pytest.mark.parametrize("shape", [16, None, "16x24", [16, -24], [16, 24.0], [16, True], [2**40, 2**40], [0, 2**70]])
def test_a_bad_shape_is_named_with_its_tensor(path: Path, shape: Any) -> None:
    rewrite(path, {"shapes": {"grouped": shape, "loose": [16, 24]}})
    with pytest.raises(InputError, match="m, grouped: the mask is damaged .its shape is"):
        MaskFile(path)


@pytest.mark.parametrize("encoding", ["2:5 along axis 1", "2:4", 4, None, ["bits"]])
def test_a_bad_encoding_is_named_with_its_tensor(path: Path, encoding: Any) -> None:
    rewrite(path, {"encodings": {**ENCODINGS, "grouped": encoding}})
    with pytest.raises(InputError, match="m, grouped: the mask is damaged .no masks are packed as"):
        MaskFile(path)


@pytest.mark.parametrize(
    "header",
    [
        {"shapes": {"loose": [16, 24]}},
        {"encodings": {"loose": "bits"}},
        {"shapes": {"grouped": [1], "loose": [1], "other": [1]}},
    ],
)
def test_a_tensor_that_the_header_or_the_file_lacks_is_named(path: Path, header: dict[str, Any]) -> None:
    rewrite(path, header)
    with pytest.raises(InputError, match="m, (grouped|other): the mask is damaged .its bytes, its shape or its enc"):
        MaskFile(path)


def test_a_digit_that_no_group_has_is_named_with_its_tensor(path: Path) -> None:
    rewrite(path, grouped=torch.full((32,), 216, dtype=torch.uint8))
    with pytest.raises(InputError, match="m, grouped: the mask is damaged .a word holds a digit that no group 2:4"):
        MaskFile(path)["grouped"]
    with pytest.raises(InputError, match="m, grouped"):
        _ = MaskFile(path).digest


@pytest.mark.parametrize("name", ["grouped", "loose"])
def test_bytes_of_another_length_are_named_with_their_tensor(path: Path, name: str) -> None:
    rewrite(path, None, **{name: torch.zeros(31, dtype=torch.uint8)})
    with pytest.raises(InputError, match=f"m, {name}: the mask is damaged .*31 bytes cannot hold 384 weights"):
        MaskFile(path)[name]


@pytest.mark.parametrize("name", ["grouped", "loose"])
def test_bytes_of_another_type_are_named_with_their_tensor(path: Path, name: str) -> None:
    for wrong in (torch.zeros(32), torch.zeros((8, 4), dtype=torch.uint8)):
        rewrite(path, None, **{name: wrong})
        with pytest.raises(InputError, match=f"m, {name}: the mask is damaged .torch"):
            MaskFile(path)[name]
