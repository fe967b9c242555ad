"""What a GGUF file declares, compared with what it holds, before anything is read out of it.

transformers leaves out tensors that it has no name for, takes any bytes at any offset, and does not look at what kind
of file it is; llama.cpp refuses all of that, and so is it refused here.
"""

import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import PreTrainedModel
from transformers.integrations.gguf.reader import _mapped, _read_metadata, _read_tensor_table
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from dass.errors import InputError

_LARGEST_HEAD = 1 << 26  # bytes of metadata and tensors' names: those with the largest vocabularies have 16 MB
_FIXED = 24  # magic, version, how many tensors, how many keys
_LEAST_TENSOR, _LEAST_KEY = 24, 13  # bytes that one takes
_SIZES = (
    *("embedding_length", "feed_forward_length", "expert_feed_forward_length", "vocab_size", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
)
_COUNTS = ("split.count", "split.no")
_ALIGNMENT = 32  # of tensors' offsets, where the file does not say
_VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
_SAFETENSORS = "Use the model's safetensors checkpoint instead."
_AGAIN = "Fetch it again."

_Entry = tuple[str, tuple[int, ...], int, int]
"""A tensor's name, shape (rows first), type and offset behind the start of the tensors' data."""


def read_layout(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a GGUF file (the vocabulary in full) and the names of its tensors, after checking both.

    Raises:
        InputError: no whole GGUF file of one language model: cut off, a part, big-endian, an adapter or projector;
            metadata beyond the first 64 MiB, or more tensors or keys declared than fit in there; tensors that overlap,
            leave holes or are not aligned; bytes behind the last one; blocks that are not those the file counts; a size
            that no tensor has; or rotary embeddings scaled in a way that transformers does not read.
    """
    try:
        blob = _mapped(str(file))
        head = blob[:_LARGEST_HEAD]
        _check_kind(file, bytes(head[:4096]))
        _check_counts(bytes(head[:_FIXED]), head.size)
        metadata, count, position = _read_metadata(head, str(file), _VOCABULARY)
        entries, end = _read_tensor_table(head, count, position)
        if end > head.size:
            raise ValueError(f"its metadata ends at byte {end}")
    except InputError:
        raise
    except (ValueError, struct.error, IndexError, KeyError, OverflowError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if blob.size > _LARGEST_HEAD:
            reason += f"; its metadata and the names of its tensors may take {_LARGEST_HEAD} bytes"
        raise InputError(f"{file} is not a whole GGUF file ({reason}). {_AGAIN}") from error
    _check_metadata(file, metadata)
    _check_places(file, entries, end, metadata.get("general.alignment", _ALIGNMENT), blob.size)
    _check_blocks(file, metadata, [name for name, *_ in entries])
    _check_sizes(file, metadata, max((size for _, shape, *_ in entries for size in shape), default=0))
    return metadata, [name for name, *_ in entries]


def check_every_tensor_has_a_place(file: Path, metadata: dict[str, Any], names: Sequence[str], model: Any) -> None:
    """Refuse tensors that transformers left out when it made `model` of the file.

    Raises:
        InputError: names the first one.
    """
    assert isinstance(model, PreTrainedModel)
    architecture = metadata["general.architecture"]
    if is_gguf_arch_supported(architecture):
        return  # read as a state dict, so whoever loaded it was told
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    places = get_gguf_hf_weights_map(model, processor)
    left_out = [name for name in names if name not in places and name.removesuffix(".weight") not in places]
    if left_out:
        raise InputError(
            f"{file} holds {left_out[0]} ({len(left_out)} such), which transformers leaves out of a {architecture} "
            f"model. {_SAFETENSORS}"
        )


def _check_kind(file: Path, start: bytes) -> None:
    version = struct.unpack_from("<I", start, 4)[0]
    if version and version % 65536 == 0:
        raise InputError(f"{file} is a big-endian GGUF file: expected little-endian. Convert it, or use another.")
    part = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", file.name)
    if b"split.count" in start and b"general.architecture" not in start:  # all but the first part name little else
        which = f"part {int(part[1])} of {int(part[2])}" if part else "one part"
        raise InputError(f"{file} is {which} of a split GGUF: {_whole(file)}")


def _check_counts(start: bytes, size: int) -> None:
    """Compare how many tensors and keys a file declares with the bytes that may hold them.

    Raises:
        ValueError: they cannot.
    """
    tensors, keys = struct.unpack_from("<QQ", start, 8)
    for count, least, what in ((tensors, _LEAST_TENSOR, "tensors"), (keys, _LEAST_KEY, "keys")):
        if count * least > size:
            raise ValueError(f"it declares {count} {what}, and {size} bytes hold at most {size // least}")


def _check_metadata(file: Path, metadata: dict[str, Any]) -> None:
    architecture = metadata["general.architecture"]
    if not isinstance(architecture, str):
        raise InputError(f"{file} has a general.architecture that is no text: expected 'llama' or another. {_AGAIN}")
    for key in (*_COUNTS, f"{architecture}.block_count"):
        if type(metadata.get(key, 0)) is not int:
            raise InputError(f"{file} has a {key} that is no whole number. {_AGAIN}")
    if (parts := metadata.get("split.count", 0)) > 1:
        raise InputError(f"{file} is part {metadata.get('split.no', 0) + 1} of {parts} of a split GGUF: {_whole(file)}")
    if (kind := metadata.get("general.type", "model")) != "model":
        told = "Merge it into its base model and convert that." if kind == "adapter" else _SAFETENSORS
        raise InputError(f"{file} has general.type {kind!r}: expected 'model', a whole language model. {told}")
    for needed in ("tokenizer.ggml.tokens", f"{architecture}.context_length", f"{architecture}.block_count"):
        if needed not in metadata:
            raise InputError(f"{file} holds no {needed}: expected a GGUF of a language model.")
    width = f"{architecture}.feed_forward_length"
    if isinstance(metadata.get(width), list) and len(set(metadata[width])) > 1:
        raise InputError(f"{file} has MLPs of several widths ({width} is a list), which transformers does not read.")
    scaling = {key: metadata.get(f"{architecture}.rope.{key}") for key in ("scaling.type", "scaling.factor")}
    scaling["scale_linear"] = metadata.get(f"{architecture}.rope.scale_linear")
    for key, value in scaling.items():
        if value not in (None, "none", "", 0, 1) and not _is_read(architecture):
            raise InputError(
                f"{file} scales its rotary embeddings ({architecture}.rope.{key} is {value!r}), which transformers "
                f"does not read from a GGUF. {_SAFETENSORS}"
            )


def _is_read(architecture: str) -> bool:
    """Whether transformers reads how an architecture scales its rotary embeddings."""
    return architecture == "gpt-oss" or is_gguf_arch_supported(architecture)


def _check_places(file: Path, entries: Sequence[_Entry], end: int, alignment: Any, size: int) -> None:
    """Every tensor begins where the one before it ends, and the last one is where the file ends."""
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{file} has general.alignment {alignment!r}: expected a power of two. {_AGAIN}")
    start, expected, last = _aligned(end, alignment), 0, 0
    seen: set[str] = set()
    for name, shape, kind, offset in entries:
        if name in seen:
            raise InputError(f"{file} holds two tensors called {name}. {_AGAIN}")
        seen.add(name)
        if offset != expected:
            raise InputError(
                f"{file}: {name} begins at byte {offset} of the tensors' data: expected {expected}, behind the tensor "
                f"before it. {_AGAIN}"
            )
        last = expected + _bytes(file, name, shape, kind)
        if start + last > size:
            raise InputError(
                f"{file} is cut off: {name} ends at byte {start + last}, and the file has {size}. {_AGAIN}"
            )
        expected = _aligned(last, alignment)
    if size > start + expected:
        raise InputError(
            f"{file} has {size - start - expected} bytes behind the {len(entries)} tensors it declares. {_AGAIN}"
        )


def _bytes(file: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    try:
        entries, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise InputError(f"{file}: {name} is of ggml type {kind}, which is not known. {_SAFETENSORS}") from None
    if (shape[-1] if shape else 1) % entries:
        raise InputError(
            f"{file}: a row of {name} has {shape[-1]} entries, not a multiple of the {entries} of its type's blocks. "
            f"{_AGAIN}"
        )
    return math.prod(shape) // entries * width


def _check_blocks(file: Path, metadata: dict[str, Any], names: Sequence[str]) -> None:
    counted = metadata[f"{metadata['general.architecture']}.block_count"]
    held = {int(found[1]) for name in names if (found := re.match(r"blk\.(\d+)\.", name))}
    if held != set(range(len(held))) or len(held) != counted:  # not one of `counted`, which may be any number
        whole = set(range(min(max(counted, 0), len(held) + 1)))
        first = min(held ^ whole)
        raise InputError(
            f"{file} says that it has {counted} blocks (block_count), and {'holds' if first in held else 'lacks'} "
            f"blk.{first} ({len(held)} held). {_AGAIN}"
        )


def _check_sizes(file: Path, metadata: dict[str, Any], largest: int) -> None:
    """Refuse a size that no tensor has along any axis: transformers makes a model of that size before it reads one."""
    for name in _SIZES:
        key = f"{metadata['general.architecture']}.{name}"
        value = metadata.get(key, 0)
        declared = max(value if isinstance(value, list) else [value], default=0)
        if not isinstance(declared, int | float) or declared > largest:
            raise InputError(
                f"{file} says {key} is {declared!r}, and its tensors have at most {largest} entries along any axis. "
                f"{_AGAIN}"
            )


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _whole(file: Path) -> str:
    return f"expected one whole file. Join the parts: llama-gguf-split --merge {file.name} WHOLE.gguf"
