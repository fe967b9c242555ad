import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from benchmarks.flops import (
    attention_flops,
    engine_share,
    forward_flops,
    forward_shapes,
    layer_flops,
    linear_shapes,
    mlp_flops,
    model_flops,
    recovery_flops,
)
from tests.models import HIDDEN, INTERMEDIATE, tiny_model, tiny_tokens

TINY = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=2, num_key_value_heads=2)


def test_one_window_of_three_tokens_counted_by_hand() -> None:
    projections = 4 * 2 * 3 * 4 * 4  # q, k, v, o: 3 tokens, 4 × 4
    scores = 2 * 2 * 6 * 4  # QKᵀ and PV: 1 + 2 + 3 pairs, 2 heads of width 2
    matrix = 2 * 3 * 4 * 6  # gate, up or down
    assert attention_flops(TINY, 1, 3) == projections + scores == 480
    assert layer_flops(TINY, 1, 3) == 480 + 5 * matrix == 1200
    assert layer_flops(TINY, 1, 3, is_last=True) == 480 + 2 * matrix == 768


def test_shared_keys_and_values_cost_less() -> None:
    shared = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=2, num_key_value_heads=1)
    assert attention_flops(TINY, 1, 3) - attention_flops(shared, 1, 3) == 2 * 2 * 3 * 4 * 2


def test_matrix_products_of_a_layer_are_what_torch_counts() -> None:
    model, ids_ST = tiny_model(), tiny_tokens(2, 16)
    config = model.config
    assert isinstance(config, LlamaConfig)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model(input_ids=ids_ST, use_cache=False)
    layer = counter.get_flop_counts()["LlamaModel.layers.0"][torch.ops.aten.mm]
    pairs = 2 * 16 * 17 // 2
    assert layer == attention_flops(config, 2, 16) - 4 * pairs * HIDDEN + mlp_flops(config, 2, 16, 3)
    assert mlp_flops(config, 2, 16, 1) == 2 * 32 * HIDDEN * INTERMEDIATE


def test_the_matrices_of_a_layer_make_its_operations_but_for_the_scores() -> None:
    shared = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=2, num_key_value_heads=1)
    shapes = linear_shapes(shared)
    assert shapes == {(4, 4): 2, (2, 4): 2, (6, 4): 4, (4, 6): 1}
    scores = 2 * 2 * 6 * 4  # one window of three tokens: 6 pairs
    linears = sum(2 * 3 * rows * columns * times for (rows, columns), times in shapes.items())
    assert layer_flops(shared, 1, 3) == scores + linears


def test_a_pass_is_its_matrices_and_the_scores() -> None:
    config = LlamaConfig(
        num_hidden_layers=3,
        hidden_size=4,
        intermediate_size=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=9,
    )
    shapes = forward_shapes(config)
    assert shapes == {(4, 4): 6, (2, 4): 6, (6, 4): 6, (4, 6): 3, (9, 4): 1}
    products = sum(2 * 3 * rows * columns * times for (rows, columns), times in shapes.items())
    scores, unasked = 3 * 2 * 2 * 6 * 4, 2 * 9 * 4  # of a window's last token no logits are wanted
    assert forward_flops(config, 1, 3) == products + scores - unasked


def test_nothing_follows_the_last_layer_of_a_model() -> None:
    config = LlamaConfig(num_hidden_layers=3, hidden_size=4, intermediate_size=6, num_attention_heads=2)
    assert model_flops(config, 2, 3) == 2 * layer_flops(config, 2, 3) + layer_flops(config, 2, 3, is_last=True)


def test_the_engine_needs_less_than_two_full_passes() -> None:
    config = LlamaConfig(num_hidden_layers=4, hidden_size=64, intermediate_size=256, num_attention_heads=4)
    attention, matrix = attention_flops(config, 1, 8), mlp_flops(config, 1, 8, 1)
    engine = 4 * attention + (4 * 2 + 3 * 3) * matrix
    assert engine_share(config, 8) == pytest.approx(engine / (8 * (attention + 3 * matrix)))


def test_a_step_of_recovery_is_what_torch_counts_of_its_matrices() -> None:
    model, ids_ST = tiny_model(dtype=torch.float32), tiny_tokens(2, 16)
    config = model.config
    assert isinstance(config, LlamaConfig)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name or "norm" in name)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model(input_ids=ids_ST, use_cache=False)
        model(input_ids=ids_ST, use_cache=False).logits.sum().backward()
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    pairs = 2 * 16 * 17 // 2
    queries = config.num_attention_heads * (config.head_dim or HIDDEN // config.num_attention_heads)
    scores = 4 * pairs * queries * config.num_hidden_layers  # of one pass; torch counts them elsewhere, and whole
    assert recovery_flops(config, 2, 16) == products + 4 * scores
