"""Floating-point operations that layer-wise pruning needs, counted by hand: 2 a multiply-add, matrix products only.

The engine's algorithm: attention once, gate and up once dense, gate, up and down once pruned. Norms, masks, activations
and the reported error are left out, so a rate computed from this count is a lower bound of what the device did.

Axes: S windows, T tokens a window, H hidden, I intermediate.
"""

from transformers import LlamaConfig


def attention_flops(config: LlamaConfig, windows: int, length: int) -> int:
    """One layer's projections, and its scores and their weighted sum over the causal half of T × T."""
    heads = config.num_attention_heads
    width = config.head_dim or config.hidden_size // heads
    queries, keys = heads * width, (config.num_key_value_heads or heads) * width
    projections = 2 * windows * length * config.hidden_size * (2 * queries + 2 * keys)
    pairs = length * (length + 1) // 2
    return projections + 2 * (2 * windows * pairs * queries)


def mlp_flops(config: LlamaConfig, windows: int, length: int, matrices: int) -> int:
    """`matrices` of the MLP's three products, each with I × H weights."""
    return 2 * windows * length * matrices * config.hidden_size * config.intermediate_size


def layer_flops(config: LlamaConfig, windows: int, length: int, *, is_last: bool = False) -> int:
    """Pruning one layer. Nothing follows the last one, so its pruned MLP is not run."""
    dense, pruned = 2, 0 if is_last else 3
    return attention_flops(config, windows, length) + mlp_flops(config, windows, length, dense + pruned)


def engine_share(config: LlamaConfig, length: int) -> float:
    """Operations of the engine as a share of those of two full passes a layer, over a whole model."""
    layers = config.num_hidden_layers
    engine = sum(layer_flops(config, 1, length, is_last=index == layers - 1) for index in range(layers))
    published = 2 * layers * (attention_flops(config, 1, length) + mlp_flops(config, 1, length, 3))
    return engine / published
