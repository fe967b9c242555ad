"""DaSS: dependency-aware semi-structured sparsity for GLU language models (arXiv 2405.01943).

`dass.prune` prunes a transformers model in memory. Needs torch, transformers and safetensors, and nothing else.
`dass.load` loads a registered version; that one needs the whole product, with MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, NumericalError

if TYPE_CHECKING:
    from dass.api import CheckpointReport, PruneReport, prune, prune_checkpoint
    from dass.masks.detect import pattern_of

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
    "pattern_of": "dass.masks.detect",
    "prune": "dass.api",
    "prune_checkpoint": "dass.api",
}


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; whoever only checks settings does not pay for it.
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name == "load":  # not in __all__: where only this package is installed it is not offered
        try:
            return import_module("tasks.registry.loading").load
        except ImportError as error:
            raise ImportError(f"dass.load needs the whole product, with tasks/ and MLflow ({error}).") from None
    raise AttributeError(f"module 'dass' has no attribute {name!r}")
