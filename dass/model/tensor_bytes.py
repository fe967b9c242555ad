"""Float tensors as the bytes that safetensors stores."""

import torch
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types that are pruned, by safetensors' spelling."""


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous host tensor's own memory: reading into it changes the tensor."""
    assert tensor.is_contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data
