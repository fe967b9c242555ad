"""N:M keep masks in less than a bit a weight: each group's rank among the C(M, N) masks a group can have.

Groups of M consecutive weights along one of the last two axes keep N each. Numbering the masks with N of M bits by
their binary value (first weight = lowest bit) makes a group one digit in base C(M, N). `_word` says how many digits go
into a word of how many bytes; in a word the first group is the lowest digit, and bytes are little-endian. Groups are
taken row-major in a mask whose grouped axis is M times shorter; digits missing from the last word are 0. So 2:4 has
three digits a byte, 2/3 bit a weight.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from dass.masks.packing import pack_mask, unpack_mask

GROUP_SIZES = (2, 4, 8, 16)
_RUN_BITS = 16
"""Groups side by side are looked up in tables of at most so many bits."""
_TEXT = re.compile(r"(\d+):(\d+) along axis ([01])")


@dataclass(frozen=True)
class Grouping:
    """Groups of which exactly so many weights are kept.

    Attributes:
        keep: N of N:M, 0 < N < M.
        group: M of N:M, one of GROUP_SIZES.
        axis: 0 when groups lie along the columns, 1 when along the rows, of the last two axes.
    """

    keep: int
    group: int
    axis: int

    def __post_init__(self) -> None:
        """Raises ValueError: no such grouping."""
        if self.group not in GROUP_SIZES or not 0 < self.keep < self.group or self.axis not in (0, 1):
            raise ValueError(f"no masks are packed as {self}")

    def __str__(self) -> str:
        return f"{self.keep}:{self.group} along axis {self.axis}"

    @classmethod
    def parse(cls, text: str) -> "Grouping":
        """Undo `str`. Raises ValueError: the text names no grouping."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"no masks are packed as {text}")
        return cls(*map(int, match.groups()))

    @property
    def base(self) -> int:
        """How many masks a group can have."""
        return comb(self.group, self.keep)

    def size(self, groups: int) -> int:
        """Bytes that so many groups are packed in."""
        digits, length = _word(self.base)
        return -(-groups // digits) * length


def pack_groups(keep: Tensor) -> tuple[Grouping, Tensor] | None:
    """Pack a mask in the fewest bytes that a grouping of it allows; of equals the row's and the smaller M go first.

    An unstructured mask is known from its first row and its first rows: that costs next to nothing.

    Args:
        keep: bool, any shape.

    Returns:
        The grouping and uint8 bytes, shape (size,); None when no grouping is smaller than one bit a weight.
    """
    keep = keep.detach().cpu()
    bits = -(-keep.numel() // 8)
    groupings = [each for each in _likely_groupings(keep) if each.size(keep.numel() // each.group) < bits]
    for each in sorted(groupings, key=lambda each: each.size(keep.numel() // each.group)):
        packed = _pack(keep, each)
        if packed is not None:
            return each, packed
    return None


def unpack_groups(packed: Tensor, shape: Iterable[int], grouping: Grouping) -> Tensor:
    """Undo `pack_groups`: bool, of the given shape.

    Raises:
        ValueError: the bytes do not hold exactly that many groups, or hold a digit that no group has.
    """
    size = torch.Size(shape)
    if len(size) < 2 or size[grouping.axis - 2] % grouping.group:
        raise ValueError(f"groups {grouping} do not tile a mask of shape {tuple(size)}")
    groups = size.numel() // grouping.group
    if packed.numel() != grouping.size(groups):
        raise ValueError(f"{packed.numel()} bytes cannot hold {size.numel()} weights, {grouping}")
    digits, length = _word(grouping.base)
    words = _words(packed, length)
    if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < grouping.base**digits:
        raise ValueError(f"a word holds a digit that no group {grouping} has")
    codes = torch.empty((words.numel(), digits), dtype=_code_dtype(grouping.group))
    for first, count in _runs(grouping):
        codes_of, number = _codes_of_runs(grouping, count), words
        if first + count < digits:
            words = torch.div(words, len(codes_of), rounding_mode="trunc")
            number = number.sub_(words * len(codes_of))
        codes[:, first : first + count] = codes_of.index_select(0, number)
    if not bool((codes.view(-1)[groups:] == _codes(grouping)[0]).all()):
        raise ValueError(f"the last word holds more groups {grouping} than the mask has")
    codes = codes.view(-1)[:groups]
    if grouping.axis == 1:
        return unpack_mask(_bits_of(codes, grouping.group), size)
    keep = torch.empty(size, dtype=torch.bool)
    members = _members(keep, grouping.group, grouping.axis)
    codes = codes.view(members.shape[1:])
    for i, member in enumerate(members):
        member.copy_((codes >> i) & 1)
    return keep


@cache
def _word(base: int) -> tuple[int, int]:
    """Digits in a word and bytes of a word: the fewest bytes a digit, then the shortest word; words are below 2⁶³."""
    words = []
    digits = 1
    while base**digits <= 2**63:
        words.append((digits, -(-(base**digits - 1).bit_length() // 8)))
        digits += 1
    return min(words, key=lambda word: (word[1] / word[0], word[1]))


def _code_dtype(group: int) -> torch.dtype:
    return torch.uint8 if group <= 8 else torch.int32


@cache
def _codes(grouping: Grouping) -> Tensor:
    """The masks of a group by rank: bit i = member i, shape (base,)."""
    every = torch.arange(1 << grouping.group, dtype=torch.int32)
    kept = torch.stack([(every >> i) & 1 for i in range(grouping.group)]).sum(dim=0)
    return every[kept == grouping.keep].to(_code_dtype(grouping.group))


@cache
def _ranks(grouping: Grouping) -> Tensor:
    """The rank of each of the 2ᴹ masks of a group, −1 where it does not keep N: int32, shape (2ᴹ,)."""
    ranks = torch.full((1 << grouping.group,), -1, dtype=torch.int32)
    ranks[_codes(grouping).long()] = torch.arange(grouping.base, dtype=torch.int32)
    return ranks


def _runs(grouping: Grouping) -> list[tuple[int, int]]:
    """A word's digits in runs that are looked up at once: the first one, and how many."""
    digits, _ = _word(grouping.base)
    most = _RUN_BITS // grouping.group
    return [(first, min(most, digits - first)) for first in range(0, digits, most)]


@cache
def _codes_of_runs(grouping: Grouping, count: int) -> Tensor:
    """The masks of so many groups in a row by their number in base C(M, N), the first group lowest: (baseᶜ, count)."""
    codes = _codes(grouping)
    return torch.cartesian_prod(*[codes] * count).view(-1, count).flip(1).contiguous()


@cache
def _numbers_of_runs(grouping: Grouping, count: int) -> Tensor:
    """The same backwards: the number of so many groups' masks side by side, the first group's bits lowest; −1 where one
    does not keep N. int32, shape (2ᴹᶜ,)."""
    ranks, numbers = _ranks(grouping), torch.zeros(1, dtype=torch.int32)
    for place in range(count):
        together = ranks[:, None] * grouping.base**place + numbers
        numbers = together.masked_fill_((ranks[:, None] < 0) | (numbers < 0), -1).view(-1)
    return numbers


def _codes_in(bits: Tensor, group: int) -> Tensor:
    """Codes of groups that lie along the rows, from a mask's packed bits: a byte is several, one, or half of one."""
    if group == 16:
        return F.pad(bits, (0, len(bits) % 2)).view(torch.int16).int().bitwise_and_(0xFFFF)
    return torch.stack([(bits >> at) & ((1 << group) - 1) for at in range(0, 8, group)], dim=1).view(-1)


def _bits_of(codes: Tensor, group: int) -> Tensor:
    """Undo `_codes_in`."""
    if group == 16:
        return codes.short().view(torch.uint8)
    together = F.pad(codes, (0, -len(codes) % (8 // group))).view(-1, 8 // group)
    bits = together[:, 0].clone()
    for i in range(1, together.shape[1]):
        bits |= together[:, i] << (group * i)
    return bits


def _members(keep: Tensor, group: int, axis: int) -> Tensor:
    """A view of a mask (..., R, C) as its groups' members: (group, ..., R / group, C) or (group, ..., R, C / group)."""
    members: Tensor = keep.unflatten(axis - 2, (-1, group)).movedim(axis - 2, 0)
    return members


def _likely_groupings(keep: Tensor) -> list[Grouping]:
    """The groupings that the first group of every column, or all groups of the first row, agree with."""
    if keep.dim() < 2 or keep.numel() == 0:
        return []
    first = keep[(0,) * (keep.dim() - 2)]
    found = []
    for axis in (1, 0):
        for group in GROUP_SIZES:
            if first.shape[axis] % group == 0:
                kept = _members(first[: 1 if axis else group], group, axis).sum(dim=0)
                count = int(kept.flatten()[0])
                if 0 < count < group and bool((kept == count).all()):
                    found.append(Grouping(count, group, axis))
    return found


def _pack(keep: Tensor, grouping: Grouping) -> Tensor | None:
    """The packed bytes, or None when a group keeps more or less than N."""
    if grouping.axis == 1:
        codes = _codes_in(pack_mask(keep), grouping.group)[: keep.numel() // grouping.group]
    else:
        members = _members(keep, grouping.group, grouping.axis)
        codes = torch.zeros(members.shape[1:], dtype=_code_dtype(grouping.group))
        for i, member in enumerate(members):
            codes |= member.to(codes.dtype) << i
    digits, length = _word(grouping.base)
    padding = -codes.numel() % digits
    of_rank_0 = int(_codes(grouping)[0])
    codes = F.pad(codes.view(-1), (0, padding), value=of_rank_0).view(-1, digits)
    words: Tensor | None = None
    for first, count in reversed(_runs(grouping)):
        side_by_side = codes[:, first].int()
        for i in range(1, count):
            side_by_side |= codes[:, first + i].int() << (grouping.group * i)
        numbers = _numbers_of_runs(grouping, count).index_select(0, side_by_side)
        if numbers.numel() and int(numbers.min()) < 0:
            return None
        words = numbers if words is None else words.long().mul_(grouping.base**count).add_(numbers)
    assert words is not None
    # A copy: a view would keep all bytes of each word alive.
    return (
        words.view(torch.uint8).view(len(words), -1)[:, :length].clone(memory_format=torch.contiguous_format).view(-1)
    )


def _words(packed: Tensor, length: int) -> Tensor:
    """Bytes as words of `length` bytes each: int32 where they are single ones, else int64."""
    if length == 1:
        return packed.int()
    padded = torch.zeros((packed.numel() // length, 8), dtype=torch.uint8)
    padded[:, :length] = packed.view(-1, length)
    return padded.view(torch.int64).view(-1)
