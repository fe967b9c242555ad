"""Floating-point operations that layer-wise pruning needs, counted by hand: 2 a multiply-add, matrix products only.

The engine's algorithm: attention once, gate and up once dense, gate, up and down once pruned. Norms, masks, activations
and the reported error are left out, so a rate computed from this count is a lower bound of what the device did.

Axes: S windows, T tokens a window, H hidden, I intermediate.
"""

from collections import Counter

from transformers import LlamaConfig


def attention_flops(config: LlamaConfig, windows: int, length: int) -> int:
    """One layer's projections, and its scores and their weighted sum over the causal half of T × T."""
    queries, keys = _widths(config)
    projections = 2 * windows * length * config.hidden_size * (2 * queries + 2 * keys)
    pairs = length * (length + 1) // 2
    return projections + 2 * (2 * windows * pairs * queries)


def _widths(config: LlamaConfig) -> tuple[int, int]:
    """Of the queries, and of the keys or the values."""
    heads = config.num_attention_heads
    width = config.head_dim or config.hidden_size // heads
    return heads * width, (config.num_key_value_heads or heads) * width


def mlp_flops(config: LlamaConfig, windows: int, length: int, matrices: int) -> int:
    """`matrices` of the MLP's three products, each with I × H weights."""
    return 2 * windows * length * matrices * config.hidden_size * config.intermediate_size


def layer_flops(config: LlamaConfig, windows: int, length: int, *, is_last: bool = False) -> int:
    """Pruning one layer. Nothing follows the last one, so its pruned MLP is not run."""
    dense, pruned = 2, 0 if is_last else 3
    return attention_flops(config, windows, length) + mlp_flops(config, windows, length, dense + pruned)


def linear_shapes(config: LlamaConfig) -> dict[tuple[int, int], int]:
    """(out_features, in_features) of a layer's matrices -> how often a token goes through: all but the last layer."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries, keys = _widths(config)
    products = [
        *((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)),
        *[(intermediate, hidden)] * 4,  # gate and up, dense and pruned
        (hidden, intermediate),
    ]
    return dict(Counter(products))


def forward_shapes(config: LlamaConfig) -> dict[tuple[int, int], int]:
    """(out_features, in_features) -> how often a token goes through in one pass of the model, its head included."""
    hidden, intermediate, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    queries, keys = _widths(config)
    layer = [
        *((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)),
        *((intermediate, hidden), (intermediate, hidden), (hidden, intermediate)),
    ]
    return dict(Counter(layer * layers + [(config.vocab_size, hidden)]))


def forward_flops(config: LlamaConfig, windows: int, length: int) -> int:
    """One pass of the model, the head on every token but a window's last."""
    layer = attention_flops(config, windows, length) + mlp_flops(config, windows, length, 3)
    head = 2 * windows * (length - 1) * config.hidden_size * config.vocab_size
    return config.num_hidden_layers * layer + head


def recovery_flops(config: LlamaConfig, windows: int, length: int) -> int:
    """A step of recovery that trains the MLPs and the norms, with the teacher beside the student.

    Both go forward, the head on every token; the student's backward pass takes the gradient of every product's input,
    which for attention's own products are two, and of the MLPs' matrices.
    """
    layers, tokens = config.num_hidden_layers, windows * length
    queries, _ = _widths(config)
    scores = 2 * (2 * windows * (length * (length + 1) // 2) * queries)
    forward = layers * (attention_flops(config, windows, length) + mlp_flops(config, windows, length, 3))
    forward += 2 * tokens * config.hidden_size * config.vocab_size
    return 3 * forward + layers * (scores + mlp_flops(config, windows, length, 3))


def model_flops(config: LlamaConfig, windows: int, length: int) -> int:
    """Pruning all layers."""
    layers = config.num_hidden_layers
    return sum(layer_flops(config, windows, length, is_last=index == layers - 1) for index in range(layers))


def engine_share(config: LlamaConfig, length: int) -> float:
    """Operations of the engine as a share of those of two full passes a layer, over a whole model."""
    published = 2 * config.num_hidden_layers * (attention_flops(config, 1, length) + mlp_flops(config, 1, length, 3))
    return model_flops(config, 1, length) / published
