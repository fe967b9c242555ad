"""DaSS: dependency-aware semi-structured sparsity for GLU language models (arXiv 2405.01943).

`dass.prune` prunes a transformers model in memory. Needs torch, transformers and safetensors, and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, NumericalError

if TYPE_CHECKING:
    from dass.api import CheckpointReport, PruneReport, prune, prune_checkpoint
    from dass.detect import pattern_of

__all__ = [
    "CheckpointReport",
    "InputError",
    "NumericalError",
    "PruneReport",
    "pattern_of",
    "prune",
    "prune_checkpoint",
]

_HOME = {
    "CheckpointReport": "dass.api",
    "PruneReport": "dass.api",
    "pattern_of": "dass.detect",
    "prune": "dass.api",
    "prune_checkpoint": "dass.api",
}


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; whoever only checks settings does not pay for it.
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'dass' has no attribute {name!r}")
