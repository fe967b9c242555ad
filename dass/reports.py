"""What the public functions give back: figures, and as text what they come to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from dass.engine.choice import Choice
from dass.engine.layer_report import LayerReport
from dass.method.methods import PROJECTIONS


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What `prune` did.

    Attributes:
        keep: parameter name ("model.layers.0.mlp.gate_proj.weight") -> bool tensor of the weight's shape, True = kept.
            It has every MLP weight; one that was left alone (`only`, `skip_layers`) keeps all.
        layers: one report per decoder layer.
        choice: what method "auto" has tried and chosen; None: a method was named.
    """

    keep: dict[str, Tensor]
    layers: list[LayerReport]
    choice: Choice | None = None

    @property
    def sparsity(self) -> float:
        """Share of MLP weights the masks remove, of all there are."""
        return 1.0 - sum(int(mask.sum()) for mask in self.keep.values()) / sum(
            mask.numel() for mask in self.keep.values()
        )

    def summary(self) -> str:
        """What was done, to be printed: a line of all layers, and a table of each."""
        return "\n".join(_summary(self.layers, self.sparsity, self.choice))

    def __repr__(self) -> str:
        return f"PruneReport({_in_short(self.layers, self.sparsity)})"


@dataclass(frozen=True, repr=False)
class CheckpointReport:
    """What `prune_checkpoint` did.

    Attributes:
        layers: one report per decoder layer.
        resumed: how many of them an earlier run had finished.
        left: files of the input's folder that are not part of the checkpoint that was read, and stayed behind.
        sparsity: share of MLP weights the masks remove, of all there are.
        choice: what method "auto" has tried and chosen; None: a method was named.
    """

    layers: list[LayerReport]
    resumed: int
    left: list[str]
    sparsity: float
    choice: Choice | None = None

    def summary(self) -> str:
        """What was done, to be printed: a line of all layers, and a table of each."""
        lines = list(_summary(self.layers, self.sparsity, self.choice))
        if self.resumed:
            lines.append(f"{self.resumed} layers were finished by an earlier run.")
        if self.left:
            lines.append(f"Left behind: {', '.join(self.left)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"CheckpointReport({_in_short(self.layers, self.sparsity)}, {self.resumed} resumed)"


@dataclass(frozen=True)
class AppliedReport:
    """What `apply_masks` did.

    Attributes:
        removed: weights that the masks remove.
        restored: how many of these were not zero in the input.
        left: files of the input's folder that are not part of the checkpoint that was read, and stayed behind.
    """

    removed: int
    restored: int
    left: list[str]

    def summary(self) -> str:
        """What was done, to be printed."""
        return f"{self.restored:,} of {self.removed:,} removed weights had come back; they are zero again."


def _in_short(layers: Sequence[LayerReport], sparsity: float) -> str:
    return ", ".join([f"{len(layers)} layers", f"sparsity {sparsity:.4f}", *_errors(layers)])


def _errors(layers: Sequence[LayerReport]) -> list[str]:
    errors = [layer.relative_error for layer in layers if layer.relative_error is not None and layer.pattern != "none"]
    if not errors:
        return []
    return [f"output error {min(errors):.3f} to {max(errors):.3f}, median {median(errors):.3f}"]


def _summary(layers: Sequence[LayerReport], sparsity: float, choice: Choice | None) -> Iterator[str]:
    pruned = [layer for layer in layers if layer.pattern != "none"]
    scores = {str(layer.score) for layer in pruned}
    patterns = {layer.pattern for layer in pruned}
    yield f"{_one_or(scores, 'a score for each layer')}, {_one_or(patterns, 'a pattern for each layer')}: " + (
        f"{sparsity:.2%} of the MLP weights of {len(layers)} layers removed in {sum(x.seconds for x in layers):.0f} s"
    )
    if choice is not None:
        yield f"auto chose {choice.told}"
    columns = ["layer", *(name.removesuffix("_proj") for name in PROJECTIONS), "output error", "seconds"]
    if len(scores) > 1 or len(patterns) > 1:
        columns.append("chosen by")
    yield "  ".join(f"{name:>8}" if name != "output error" else f"{name:>12}" for name in columns[:6]) + (
        f"  {columns[6]}" if len(columns) > 6 else ""
    )
    for layer in layers:
        error = "" if layer.relative_error is None else f"{layer.relative_error:.4f}"
        shares = "  ".join(f"{layer.sparsity[name]:>8.2%}" for name in PROJECTIONS)
        how = "skipped" if layer.pattern == "none" else f"{layer.score}, {layer.pattern}" if len(columns) > 6 else ""
        yield f"{layer.layer:>8}  {shares}  {error:>12}  {layer.seconds:>8.2f}  {how}".rstrip()


def _one_or(names: set[str], many: str) -> str:
    return next(iter(names)) if len(names) == 1 else many
