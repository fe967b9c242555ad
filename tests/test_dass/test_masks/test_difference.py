"""The difference of two sets of masks."""

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from dass.errors import InputError
from dass.masks.difference import MaskDifference, compare_masks, together


def mask(*rows: str) -> Tensor:
    return torch.tensor([[bit == "1" for bit in row] for row in rows])


def test_equal_masks_have_moved_nothing() -> None:
    masks = {"w": mask("1010", "0110")}
    assert compare_masks(masks, masks) == [MaskDifference("w", 0, 8, 4)]


def test_moved_bits_and_the_kept_they_share_are_counted() -> None:
    [difference] = compare_masks({"w": mask("1100", "1100")}, {"w": mask("1010", "1100")})
    assert difference == MaskDifference("w", 2, 8, 3)
    assert difference.as_json() == {"tensor": "w", "moved": 2, "weights": 8, "share": 0.25, "jaccard": 0.6}


def test_opposite_masks_share_nothing() -> None:
    [difference] = compare_masks({"w": mask("10")}, {"w": mask("01")})
    assert (difference.moved, difference.share, difference.jaccard) == (2, 1.0, 0.0)


def test_masks_that_keep_nothing_are_equal() -> None:
    [difference] = compare_masks({"w": mask("00")}, {"w": mask("00")})
    assert (difference.moved, difference.share, difference.jaccard) == (0, 0.0, 1.0)


def test_masks_are_counted_together() -> None:
    both = together("both", [MaskDifference("v", 2, 8, 3), MaskDifference("w", 0, 8, 4)])
    assert (both.tensor, both.moved, both.share, both.jaccard) == ("both", 2, 2 / 16, 7 / 9)


def test_tensors_come_in_the_order_of_the_first_masks() -> None:
    a, b = {"z": mask("1"), "y": mask("1")}, {"y": mask("1"), "z": mask("1")}
    assert [difference.tensor for difference in compare_masks(a, b)] == ["z", "y"]


def test_the_first_tensor_in_one_set_only_is_named() -> None:
    a, b = {"v": mask("1"), "w": mask("1"), "x": mask("1")}, {"v": mask("1")}
    with pytest.raises(InputError, match="^Only the first masks hold w: they are masks of different models.$"):
        compare_masks(a, b)
    with pytest.raises(InputError, match="^Only the second masks hold w: they are masks of different models.$"):
        compare_masks(b, a)


def test_the_first_tensor_of_another_shape_is_named() -> None:
    a, b = {"v": mask("1"), "w": mask("10"), "x": mask("10")}, {"v": mask("1"), "w": mask("1", "0"), "x": mask("1")}
    with pytest.raises(InputError, match=r"^w: one mask is \(1, 2\), the other \(2, 1\): masks of different models.$"):
        compare_masks(a, b)


def test_one_pair_is_in_memory_at_a_time() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most: list[int] = []

    class Read(Mapping[str, Tensor]):
        """Makes a mask when asked for one, as a mask file does."""

        def __getitem__(self, name: str) -> Tensor:
            made = mask("10")
            alive.add(made)
            most.append(len(alive))
            return made

        def __contains__(self, name: object) -> bool:
            return name in list(self)

        def __iter__(self) -> Iterator[str]:
            return iter("abcd")

        def __len__(self) -> int:
            return 4

    assert len(compare_masks(Read(), Read())) == 4
    assert max(most) == 2
