"""Mask files."""

from pathlib import Path

import torch

from dass.masks import MaskFile, save_masks


def test_equal_masks_are_equal_bytes(tmp_path: Path) -> None:
    keep = {"a": torch.tensor([[True, False]]), "b": torch.tensor([[False], [True]])}
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
