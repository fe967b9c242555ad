"""Masks as bits."""

from collections.abc import Mapping

import pytest
import torch

from dass.masks.packing import mask_digest, pack_mask, unpack_mask


def test_bits_are_row_major_lowest_first_and_padded_with_zeros() -> None:
    keep = torch.tensor([[True, False, True], [True, False, False], [False, False, True]])
    assert pack_mask(keep).tolist() == [0b00001101, 0b1]


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (64, 32), (7, 9, 2)])
def test_unpacking_undoes_packing(shape: tuple[int, ...]) -> None:
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_mask(keep)
    assert packed.numel() == -(-keep.numel() // 8)
    assert torch.equal(unpack_mask(packed, shape), keep)


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 bytes cannot hold 9 weights"):
        unpack_mask(torch.zeros(1, dtype=torch.uint8), (3, 3))


def digest_of(masks: Mapping[str, tuple[tuple[int, ...], int]]) -> str:
    """Of masks given as shape and byte."""
    shapes = {name: shape for name, (shape, _) in masks.items()}
    return mask_digest(shapes, lambda name: torch.tensor([masks[name][1]], dtype=torch.uint8))


def test_the_digest_sees_names_shapes_and_bits_but_not_the_order() -> None:
    masks: dict[str, tuple[tuple[int, ...], int]] = {"a": ((2, 4), 5), "b": ((2, 4), 6)}
    digest = digest_of(masks)
    assert digest_of(dict(reversed(masks.items()))) == digest
    others = [{"c": masks["a"], "b": masks["b"]}, {**masks, "a": ((4, 2), 5)}, {**masks, "a": ((2, 4), 4)}]
    assert len({digest, *map(digest_of, others)}) == 4
