"""DaSS: dependency-aware semi-structured sparsity for GLU language models (arXiv 2405.01943).

`dass.prune` prunes a transformers model in memory. Needs torch, transformers and safetensors, and nothing else.
`dass.load` loads a registered version; that one needs the whole product, with MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, NumericalError

if TYPE_CHECKING:
    from dass.api import PlanOptions, prune, prune_checkpoint
    from dass.calibration import calibration_windows
    from dass.engine.layer_report import LayerReport
    from dass.masks.detect import pattern_of
    from dass.registered import load
    from dass.remask import apply_masks
    from dass.reports import AppliedReport, CheckpointReport, PruneReport

    __version__: str

__all__ = [
    "AppliedReport",
    "CheckpointReport",
    "InputError",
    "LayerReport",
    "NumericalError",
    "PlanOptions",
    "PruneReport",
    "__version__",
    "apply_masks",
    "calibration_windows",
    "load",
    "pattern_of",
    "prune",
    "prune_checkpoint",
]

_HOME = {
    "AppliedReport": "dass.reports",
    "CheckpointReport": "dass.reports",
    "LayerReport": "dass.engine.layer_report",
    "PlanOptions": "dass.api",
    "PruneReport": "dass.reports",
    "apply_masks": "dass.remask",
    "calibration_windows": "dass.calibration",
    "load": "dass.registered",
    "pattern_of": "dass.masks.detect",
    "prune": "dass.api",
    "prune_checkpoint": "dass.api",
}

if not TYPE_CHECKING:  # or every name would pass there

    def __getattr__(name: str) -> Any:
        # Torch takes seconds to import; whoever only checks settings does not pay for it.
        if name in _HOME:
            value = getattr(import_module(_HOME[name]), name)
        elif name == "__version__":
            metadata = import_module("importlib.metadata")
            try:
                value = metadata.version("dass")
            except metadata.PackageNotFoundError:
                raise AttributeError("dass has no __version__ here: it is not installed") from None
        else:
            raise AttributeError(f"module 'dass' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
