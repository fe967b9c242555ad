"""How much of every neuron is left: hand-sized masks with the answer visible."""

import pytest
import torch
from torch import Tensor

from dass.errors import InputError
from dass.masks.density import neuron_densities


def mlp(
    gate: list[list[int]], up: list[list[int]], down: list[list[int]], prefix: str = "layers.0.mlp"
) -> dict[str, Tensor]:
    matrices = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    return {f"{prefix}.{name}.weight": torch.tensor(rows).bool() for name, rows in matrices.items()}


GATE, UP, DOWN = [[1, 1], [0, 0], [1, 0]], [[1, 1], [0, 0], [0, 1]], [[1, 0, 0], [1, 0, 0]]


def test_a_neurons_density_counts_its_rows_and_its_column() -> None:
    (layer,) = neuron_densities(mlp(GATE, UP, DOWN))
    assert layer.kept_I.tolist() == pytest.approx([1.0, 0.0, 2 / 6])
    assert (layer.layer, layer.removed, layer.severed) == (0, 1, 2)


def test_bins_go_from_the_least_to_the_most_kept() -> None:
    (layer,) = neuron_densities(mlp(GATE, UP, DOWN))
    assert layer.binned(3) == layer.binned(100)
    assert [kept for *_, kept in layer.binned(3)] == pytest.approx([0.0, 2 / 6, 1.0])
    assert layer.binned(2) == [(0.0, 2 / 3, pytest.approx(1 / 6)), (2 / 3, 1.0, 1.0)]


def test_layers_come_in_order_of_their_numbers() -> None:
    masks = mlp(GATE, UP, DOWN, "layers.10.mlp") | mlp(GATE, UP, DOWN, "layers.2.mlp")
    assert [layer.layer for layer in neuron_densities(masks)] == [2, 10]


def test_stacked_and_single_experts_are_counted_each_for_itself() -> None:
    single = mlp(GATE, UP, DOWN, "layers.1.mlp.experts.0") | mlp(
        UP, GATE, [[1, 1, 1], [1, 1, 1]], "layers.1.mlp.experts.1"
    )
    stacked = {
        "layers.1.mlp.experts.gate_up_proj": torch.tensor([GATE + UP, UP + GATE]).bool(),
        "layers.1.mlp.experts.down_proj": torch.tensor([DOWN, [[1, 1, 1], [1, 1, 1]]]).bool(),
    }
    (one,), (other,) = neuron_densities(single), neuron_densities(stacked)
    assert torch.equal(one.kept_I, other.kept_I)
    assert (one.removed, one.severed) == (other.removed, other.severed) == (1, 3)


def test_a_matrix_of_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"layers.0.mlp.odd.weight: which layer's gate, up or down"):
        neuron_densities({"layers.0.mlp.odd.weight": torch.ones(2, 2).bool()})
