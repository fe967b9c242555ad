"""Keep masks as bytes: one bit a weight, and a digest that depends on the masks alone.

Bits are row-major, the lowest bit of a byte first, 1 = kept; the last byte is padded with zeros.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

_GATHER = 0x0102040810204080
_CACHED_EIGHTS = 1 << 16  # what is computed at once stays in a core's cache
# A byte's bits, lowest first, each as a byte of 0 or 1, all eight as one number: (256,).
_EIGHTS = (torch.arange(256)[:, None] >> torch.arange(8) & 1).to(torch.uint8).view(torch.int64).view(-1)
_ONES = torch.tensor([byte.bit_count() for byte in range(256)])


def pack_mask(keep: Tensor) -> Tensor:
    """Pack a bool mask of any shape into uint8, shape (⌈numel / 8⌉,)."""
    bits = keep.detach().cpu().contiguous().view(-1).view(torch.uint8)
    if bits.numel() % 8:  # padding copies
        bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
    # Eight bytes of 0 or 1 at a time: the product moves byte i's bit to bit 56 + i, and no other bit comes there.
    eights = bits.view(torch.int64) if bits.numel() else torch.empty(0, dtype=torch.int64)
    packed = torch.empty(eights.shape, dtype=torch.uint8)
    for some, out in zip(eights.split(_CACHED_EIGHTS), packed.split(_CACHED_EIGHTS), strict=True):
        out.copy_((some * _GATHER).bitwise_right_shift_(56))
    return packed


def unpack_mask(packed: Tensor, shape: Iterable[int]) -> Tensor:
    """Undo `pack_mask`: bool, of the given shape.

    Raises:
        ValueError: the bytes do not hold exactly that many weights.
    """
    size = torch.Size(shape)
    if packed.numel() != -(-size.numel() // 8):
        raise ValueError(f"a mask of {packed.numel()} bytes cannot hold {size.numel()} weights")
    eights = torch.empty(packed.shape, dtype=torch.int64)
    for some, out in zip(packed.split(_CACHED_EIGHTS), eights.split(_CACHED_EIGHTS), strict=True):
        torch.index_select(_EIGHTS, 0, some.int(), out=out)
    return eights.view(torch.bool)[: size.numel()].view(size)


def count_bits(packed: Tensor) -> int:
    """How many bits of some bytes (uint8) are 1."""
    return int(torch.bincount(packed, minlength=256) @ _ONES)


def mask_digest(shapes: Mapping[str, tuple[int, ...]], bits_of: Callable[[str], Tensor]) -> str:
    """sha256 (hex) over masks sorted by name: each one's name, shape and packed bits. One is in memory at a time.

    Args:
        shapes: parameter name -> shape of the weight.
        bits_of: gives the packed bits of a name.
    """
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(f"{name} {'x'.join(map(str, shapes[name]))}\n".encode())
        digest.update(bits_of(name).numpy().data)
    return digest.hexdigest()
