"""`dass.prune`: prune a model that is in memory."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from dass.decoder import Decoder
from dass.engine import LayerReport, LayerwisePruner, plan
from dass.score import DEFAULT_ALPHA


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did.

    Attributes:
        keep: parameter name ("model.layers.0.mlp.gate_proj.weight") -> bool tensor of the weight's shape, True = kept.
        layers: one report per decoder layer.
    """

    keep: dict[str, Tensor]
    layers: list[LayerReport]

    @property
    def sparsity(self) -> float:
        """Share of MLP weights the masks remove."""
        return 1.0 - sum(int(mask.sum()) for mask in self.keep.values()) / sum(
            mask.numel() for mask in self.keep.values()
        )


def prune(
    model: PreTrainedModel,
    input_ids: Tensor,
    method: str = "dass",
    sparsity: float | None = None,
    pattern: str = "unstructured",
    alpha: float = DEFAULT_ALPHA,
    *,
    batch_tokens: int | None = None,
    on_layer: Callable[[LayerReport], None] | None = None,
) -> PruneReport:
    """Prune the GLU MLPs of a causal LM in place, one shot (arXiv 2405.01943).

    Only gate, up and down projections change: removed weights become +0.0, kept ones keep their bits.

    Args:
        model: a transformers causal LM, float32, bfloat16 or float16, on any one device.
        input_ids: calibration tokens, LongTensor (samples, length).
        method: "dass", "wanda" or "magnitude".
        sparsity: share of MLP weights to remove; None means 0.5, or what an N:M pattern implies.
        pattern: "unstructured", or "N:M" (keep N of every M).
        alpha: exponent of the neuron norm in DaSS's gate and up scores.
        batch_tokens: tokens computed at once; None chooses by device.
        on_layer: called with each layer's report as it is done.

    Returns:
        The keep masks and a report per layer.

    Raises:
        InputError: a value that cannot be used; nothing has changed.
        NumericalError: NaN or infinite activations; the layers before the named one are pruned.

    Example:
        >>> report = dass.prune(model, input_ids, pattern="2:4")
        >>> report.keep["model.layers.0.mlp.down_proj.weight"].float().mean()
        tensor(0.5000)
    """
    what = plan(method, sparsity, pattern, alpha)
    was_training = model.training
    model.eval()
    try:
        pruner = LayerwisePruner(Decoder(model), input_ids, what, batch_tokens)
        keep: dict[str, Tensor] = {}
        layers: list[LayerReport] = []
        for index in range(model.config.get_text_config().num_hidden_layers):
            result = pruner.prune_layer(index)
            keep |= result.keep
            layers.append(result.report)
            if on_layer is not None:
                on_layer(result.report)
    finally:
        model.train(was_training)
    return PruneReport(keep, layers)
