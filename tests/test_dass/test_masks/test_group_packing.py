"""N:M masks as ranks of groups."""

import pytest
import torch
from torch import Tensor

from dass.masks.group_packing import GROUP_SIZES, Grouping, pack_groups, unpack_groups


def random_mask(keep: int, group: int, axis: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A mask that keeps `keep` of every `group` weights along one of its last two axes."""
    turned = shape if axis == 1 else (*shape[:-2], shape[-1], shape[-2])
    scores = torch.rand((*turned[:-1], turned[-1] // group, group), generator=torch.Generator().manual_seed(seed))
    mask = (scores.argsort(dim=-1) < keep).view(turned)
    return mask if axis == 1 else mask.transpose(-1, -2).contiguous()


def packed(mask: Tensor) -> tuple[Grouping, Tensor]:
    found = pack_groups(mask)
    assert found is not None
    return found


EVERY = [Grouping(keep, group, axis) for group in GROUP_SIZES for keep in range(1, group) for axis in (0, 1)]


@pytest.mark.parametrize("grouping", EVERY, ids=str)
def test_unpacking_undoes_packing_along_both_axes(grouping: Grouping) -> None:
    mask = random_mask(grouping.keep, grouping.group, grouping.axis, (48, 80))
    found, bytes_ = packed(mask)
    assert found == grouping
    assert bytes_.dtype == torch.uint8
    assert bytes_.numel() * 8 < mask.numel()
    assert bytes_.is_contiguous()
    assert bytes_.untyped_storage().nbytes() == bytes_.numel()
    assert torch.equal(unpack_groups(bytes_, mask.shape, found), mask)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 3, 8, 8), (4, 148), (148, 4)])
def test_groups_lie_along_the_last_two_axes_and_need_not_fill_a_word(axis: int, shape: tuple[int, ...]) -> None:
    mask = random_mask(2, 4, axis, shape)
    found, bytes_ = packed(mask)
    assert found == Grouping(2, 4, axis)
    assert bytes_.numel() == -(-mask.numel() // 12)
    assert torch.equal(unpack_groups(bytes_, shape, found), mask)


def test_three_groups_of_2_4_are_one_byte_the_first_group_its_lowest_digit() -> None:
    # By binary value, first weight lowest: 1100, 1010, 0110, 1001, 0101, 0011 are the digits 0 to 5.
    groups = ["1010", "0011", "0110", "1001", "1100", "1100"]
    mask = torch.tensor([[bit == "1" for bit in "".join(groups)]])
    found, bytes_ = packed(mask)
    assert str(found) == "2:4 along axis 1"
    assert bytes_.tolist() == [1 + 5 * 6 + 2 * 36, 3]


def test_a_mask_in_pieces_of_memory_is_packed_as_any_other() -> None:
    mask = random_mask(2, 4, 0, (64, 32))
    found, bytes_ = packed(mask.T)
    assert found == Grouping(2, 4, 1)
    assert torch.equal(unpack_groups(bytes_, (32, 64), found), mask.T)


def test_the_smallest_encoding_wins_and_of_equals_the_rows() -> None:
    transposable = torch.eye(4).bool().repeat(8, 8)  # 1:4 both ways, and 2:8 and 4:16
    assert packed(transposable)[0] == Grouping(1, 4, 1)
    both = random_mask(1, 2, 0, (32, 32))
    assert packed(both)[0] == Grouping(1, 2, 0)
    assert packed(random_mask(4, 8, 1, (32, 32)))[0] == Grouping(4, 8, 1)


def test_equal_masks_are_equal_bytes() -> None:
    first, second = (packed(random_mask(4, 8, 0, (64, 64))) for _ in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("shape", [(64,), (7, 9), (0, 4), (4, 0), (64, 64)])
def test_a_mask_without_groups_is_not_packed(shape: tuple[int, ...]) -> None:
    assert pack_groups(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5) is None


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_that_keeps_all_or_nothing_is_not_packed(value: bool) -> None:
    assert pack_groups(torch.full((16, 16), value)) is None


def test_groups_that_save_nothing_are_not_packed() -> None:
    assert pack_groups(torch.tensor([[True, False, True, False]])) is None


def test_one_wrong_weight_at_the_end_is_seen() -> None:
    mask = random_mask(2, 4, 1, (64, 64))
    mask[-1, -1] ^= True
    assert pack_groups(mask) is None


def test_an_unstructured_mask_has_no_grouping() -> None:
    assert pack_groups(torch.rand(64, 64) < 0.5) is None


def test_bytes_of_another_length_are_refused() -> None:
    found, bytes_ = packed(random_mask(2, 4, 1, (16, 24)))
    for wrong in (bytes_[:-1], torch.cat([bytes_, bytes_[:1]])):
        with pytest.raises(ValueError, match="bytes cannot hold 384 weights, 2:4 along axis 1"):
            unpack_groups(wrong, (16, 24), found)


@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (8, 16)])
def test_a_digit_that_no_group_has_is_refused(keep: int, group: int) -> None:
    found, bytes_ = packed(random_mask(keep, group, 0, (32, 32)))
    bytes_[-7:] = 255
    with pytest.raises(ValueError, match="a digit that no group"):
        unpack_groups(bytes_, (32, 32), found)


def test_groups_behind_the_last_are_refused() -> None:
    found, bytes_ = packed(random_mask(2, 4, 1, (4, 40)))  # 40 groups: the last byte holds one
    bytes_[-1] += 6
    with pytest.raises(ValueError, match="more groups 2:4 along axis 1 than the mask has"):
        unpack_groups(bytes_, (4, 40), found)


@pytest.mark.parametrize("shape", [(16, 22), (384,), ()])
def test_a_shape_that_groups_do_not_tile_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not tile"):
        unpack_groups(torch.zeros(32, dtype=torch.uint8), shape, Grouping(2, 4, 1))


def test_a_grouping_is_read_from_its_own_text() -> None:
    for grouping in EVERY:
        assert Grouping.parse(str(grouping)) == grouping


@pytest.mark.parametrize(
    "text", ["", "2:4", "0:4 along axis 1", "4:4 along axis 1", "2:5 along axis 1", "2:4 along axis 2"]
)
def test_other_text_is_no_grouping(text: str) -> None:
    with pytest.raises(ValueError, match="no masks are packed as"):
        Grouping.parse(text)
