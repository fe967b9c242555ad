"""GLU MLPs are found by what they are, not by what they are called."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tests.unlisted  # noqa: F401  registers itself
from dass.errors import InputError
from dass.model.glu import GluMlp, Place, find_glus, parameters_of
from tests.models import EVERY_FAMILY, FAMILIES, HIDDEN, INTERMEDIATE, tiny_model
from tests.test_dass.matrices import matrices


class Layer(nn.Module):
    """A layer of named modules."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def linears(**sizes: tuple[int, int]) -> Layer:
    """Linear modules of (in_features, out_features)."""
    return Layer(**{name: nn.Linear(*size, bias=False) for name, size in sizes.items()})


def layer_of(family: str, index: int = 1, **changes: Any) -> Any:
    layers = "blocks" if family == "unlisted" else "layers"
    return tiny_model(family, **changes).base_model.get_submodule(f"{layers}.{index}")


def glus_of(family: str, index: int = 1) -> tuple[list[GluMlp], nn.Module]:
    layer = layer_of(family, index)
    return find_glus(layer), layer


@pytest.mark.parametrize(
    ("family", "names", "sizes"),
    [
        *((family, ["mlp"], {(INTERMEDIATE, HIDDEN)}) for family in [*FAMILIES, "phi3"]),
        ("unlisted", ["feed"], {(INTERMEDIATE, HIDDEN)}),
        ("mixtral", [f"mlp.experts.{expert}" for expert in range(4)], {(INTERMEDIATE, HIDDEN)}),
        ("qwen3_moe", [f"mlp.experts.{expert}" for expert in range(4)], {(16, HIDDEN)}),
        (
            "qwen2_moe",
            [*(f"mlp.experts.{expert}" for expert in range(4)), "mlp.shared_expert"],
            {(16, HIDDEN), (24, HIDDEN)},
        ),
        ("deepseek_v3", [*(f"mlp.experts.{expert}" for expert in range(4)), "mlp.shared_experts"], {(16, HIDDEN)}),
    ],
)
def test_every_family_s_mlps_are_found(family: str, names: list[str], sizes: set[tuple[int, int]]) -> None:
    found, _ = glus_of(family)
    assert [mlp.name for mlp in found] == names
    assert {mlp.sizes for mlp in found} == sizes
    assert [mlp.is_expert for mlp in found] == [".experts." in name for name in names]


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_a_dense_layer_of_a_mixture_has_one(family: str) -> None:
    found, _ = glus_of(family, 0)
    assert [(mlp.name, mlp.expert, mlp.is_expert) for mlp in found] == [("mlp", None, False)]


@pytest.mark.parametrize("family", [*EVERY_FAMILY, "unlisted"])
def test_the_weights_are_those_their_names_say(family: str) -> None:
    found, layer = glus_of(family)
    parameters = {name: layer.get_parameter(name).detach() for name in parameters_of(found)}
    expected = [(projection, matrix) for _, projection, matrix in matrices(parameters)]
    actual = [(projection, weight) for mlp in found for projection, weight in mlp.weights().items()]
    assert len(actual) == len(expected) == 3 * len(found)
    for projection, weight in actual:
        assert any(projection == other and torch.equal(weight, matrix) for other, matrix in expected)


@pytest.mark.parametrize("family", [*EVERY_FAMILY, "unlisted"])
def test_places_cover_every_mlp_weight_of_the_layer_once(family: str) -> None:
    found, layer = glus_of(family)
    counted = {name: torch.zeros_like(layer.get_parameter(name).detach()) for name in parameters_of(found)}
    for mlp in found:
        for view in mlp.views(counted).values():
            view += 1
    assert all(bool((count == 1).all()) for count in counted.values())
    mlp_parameters = {
        name
        for name, parameter in layer.named_parameters()
        if name.partition(".")[0] in ("mlp", "feed") and "gate.weight" not in name and "shared_expert_gate" not in name
    }
    if family != "unlisted":  # whose gate is no router
        assert set(counted) == mlp_parameters


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "mixtral"])
def test_the_intermediate_is_what_the_module_gives_its_down_projection(family: str) -> None:
    mlp = glus_of(family)[0][-1]
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    z = mlp.intermediate(x, mlp.weights())
    chosen = () if mlp.expert is None else (torch.full((5, 1), mlp.expert), torch.ones(5, 1))  # of weight 1
    expected = mlp.module(x, *chosen)
    assert torch.allclose(functional.linear(z, mlp.weights()["down_proj"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_biases_belong_to_the_intermediate(family: str) -> None:
    layer = layer_of(family, mlp_bias=True)
    if family == "phi3":  # which has none, but might
        layer.mlp.gate_up_proj.bias = nn.Parameter(torch.zeros(2 * INTERMEDIATE))
    [mlp] = find_glus(layer)
    with torch.no_grad():
        for name, parameter in layer.mlp.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    x, seen = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0)), []
    mlp.down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mlp.module(x)
    assert torch.allclose(mlp.intermediate(x, mlp.weights()), seen[0], rtol=1e-4, atol=1e-5)
    assert all(bias is not None and bias.abs().sum() > 0 for bias in mlp.biases)


def test_three_linears_of_any_name_are_told_apart_by_their_shapes() -> None:
    layer = Layer(ffn=linears(out=(12, 8), a=(8, 12), gate_b=(8, 12)))
    [mlp] = find_glus(layer)
    assert mlp.places == {
        "gate_proj": Place("ffn.gate_b.weight"),
        "up_proj": Place("ffn.a.weight"),
        "down_proj": Place("ffn.out.weight"),
    }


def test_w1_w3_w2_are_gate_up_down() -> None:
    [mlp] = find_glus(Layer(ffn=linears(w1=(8, 12), w2=(12, 8), w3=(8, 12))))
    assert [place.parameter for place in mlp.places.values()] == ["ffn.w1.weight", "ffn.w3.weight", "ffn.w2.weight"]


def test_experts_that_are_modules_of_their_own_are_experts() -> None:
    expert = {"w1": (8, 12), "w2": (12, 8), "w3": (8, 12)}
    experts = nn.ModuleList(linears(**expert) for _ in range(3))
    found = find_glus(Layer(moe=Layer(gate=nn.Linear(8, 3), experts=experts)))
    assert [mlp.name for mlp in found] == ["moe.experts.0", "moe.experts.1", "moe.experts.2"]
    assert all(mlp.is_expert and mlp.expert is None for mlp in found)


@pytest.mark.parametrize(
    "sizes",
    [
        {"q": (8, 8), "k": (8, 8), "v": (8, 8)},  # square: attention
        {"up": (8, 12), "down": (12, 8)},  # no gate
        {"gate_proj": (8, 12), "up_proj": (8, 16), "down_proj": (12, 8)},
        {"a": (8, 12), "b": (8, 12), "c": (8, 12)},
        {"gate_up_proj": (8, 20), "down_proj": (12, 8)},
    ],
)
def test_what_does_not_fit_together_is_refused_with_what_was_found(sizes: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(InputError, match=f"Layer has no GLU MLP: found ffn.{next(iter(sizes))}, .*three linear"):
        find_glus(Layer(ffn=linears(**sizes)))
    with pytest.raises(InputError, match="found no linear module"):
        find_glus(Layer(norm=nn.LayerNorm(4)))


@pytest.mark.parametrize("attribute", [{"is_transposed": True}, {"has_bias": True}, {"is_concatenated": False}])
def test_stacked_experts_of_another_arrangement_are_refused(attribute: dict[str, bool]) -> None:
    experts = nn.Module()
    experts.gate_up_proj = nn.Parameter(torch.zeros(2, 24, 8))
    experts.down_proj = nn.Parameter(torch.zeros(2, 8, 12))
    assert len(find_glus(Layer(experts=experts))) == 2
    for name, value in attribute.items():
        setattr(experts, name, value)
    with pytest.raises(InputError, match="no GLU MLP"):
        find_glus(Layer(experts=experts))


def test_an_mlp_that_computes_its_activation_itself_cannot_be_refitted() -> None:
    [mlp] = glus_of("unlisted")[0]
    with pytest.raises(InputError, match=r"Feed has no activation module: .* Use prune\.update: none"):
        _ = mlp.activation


def test_an_activation_of_any_name_is_found_among_the_children() -> None:
    ffn = linears(gate_proj=(8, 12), up_proj=(8, 12), down_proj=(12, 8))
    ffn.add_module("squash", nn.Tanh())
    [mlp] = find_glus(Layer(ffn=ffn))
    value = torch.tensor([0.5])
    found: Tensor = mlp.activation(value)
    assert torch.equal(found, value.tanh())
