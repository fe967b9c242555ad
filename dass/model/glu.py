"""Finding the GLU MLPs of a decoder layer by their structure, whatever the family calls them.

A GLU MLP is three matrices, gate (I, H), up (I, H) and down (H, I), that lie somewhere in the layer's parameters: as
three linear modules (LLaMA, Gemma, Qwen), with gate and up fused into one (Phi-3), or as one expert's slice of the 3-D
parameters of a mixture (Mixtral, Qwen-MoE). A dense layer has one, a mixture one per expert and perhaps a shared one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from dass.errors import InputError
from dass.method.methods import PROJECTIONS, Projection

_FUSED = "gate_up_proj"
_NAMED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


@dataclass(frozen=True)
class Place:
    """Where a matrix lies: `parameter[at]`, the parameter's name being that inside the layer."""

    parameter: str
    at: tuple[int | slice, ...] = ()


@dataclass(frozen=True)
class GluMlp:
    """One GLU MLP of a decoder layer.

    Attributes:
        name: its name inside the layer: "mlp", "mlp.shared_expert", "mlp.experts.3".
        module: the module that computes it; for an expert, the module that holds all of them.
        expert: its index among the experts, or None.
        places: where its three matrices lie.
        sizes: (I, H).
    """

    name: str
    module: nn.Module
    expert: int | None
    places: Mapping[Projection, Place]
    sizes: tuple[int, int]

    @property
    def is_expert(self) -> bool:
        """Whether a router decides which tokens it gets."""
        return self.expert is not None or ".experts." in self.name

    @property
    def down(self) -> nn.Module:
        """The linear module of the down projection. Not for experts: theirs is a slice of a parameter."""
        assert self.expert is None
        owner = self.places["down_proj"].parameter.removesuffix(".weight")
        return self.module.get_submodule(owner.removeprefix(f"{self.name}."))

    def views(self, tensors: Mapping[str, Tensor]) -> dict[Projection, Tensor]:
        """Views of gate, up and down in tensors keyed by parameter name (weights, or masks of their shape)."""
        return {projection: tensors[place.parameter][place.at] for projection, place in self.places.items()}

    def weights(self) -> dict[Projection, Tensor]:
        """The three matrices as they stand in the module."""
        inside = self.name if self.expert is None else self.name.rpartition(".")[0]
        return self.views(
            {
                place.parameter: self.module.get_parameter(place.parameter.removeprefix(f"{inside}.")).detach()
                for place in self.places.values()
            }
        )

    def intermediate(self, x: Tensor, weights: Mapping[Projection, Tensor]) -> Tensor:
        """z = act(gate x) ⊙ (up x) for other weights than the module's: (..., H) to (..., I), in the type of x."""
        gate_bias, up_bias = self.biases
        gate = functional.linear(x, weights["gate_proj"].to(x.dtype), gate_bias)
        up = functional.linear(x, weights["up_proj"].to(x.dtype), up_bias)
        return self.activation(gate) * up

    @property
    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Biases of gate and up, (I,) each, or None."""
        if self.expert is not None:
            return None, None
        found: list[Tensor | None] = []
        for projection in ("gate_proj", "up_proj"):
            place = self.places[projection]
            owner = place.parameter.removesuffix(".weight").removeprefix(f"{self.name}.")
            bias = self.module.get_submodule(owner).bias
            found.append(None if bias is None else bias[place.at])  # type: ignore[index]
        return found[0], found[1]

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """The gate's activation function, elementwise.

        Raises:
            InputError: the module has none where one is expected.
        """
        for name in ("act_fn", "activation_fn", "act"):
            found = getattr(self.module, name, None)
            if callable(found):
                return found  # type: ignore[no-any-return]
        for child in self.module.children():
            if not isinstance(child, nn.Linear) and not any(child.parameters()):
                return child
        raise InputError(
            f"{type(self.module).__name__} has no activation module: its weights cannot be re-fitted. "
            "Use prune.update: none."
        )


def find_glus(layer: nn.Module) -> list[GluMlp]:
    """The GLU MLPs inside one decoder layer, in the order of its modules.

    Raises:
        InputError: there is none. The message names the linear modules that were found.
    """
    found = [mlp for name, module in layer.named_modules() if name for mlp in _glus_of(name, module)]
    if found:
        return found
    linears = ", ".join(name for name, module in layer.named_modules() if _is_linear_like(module)) or "no linear module"
    raise InputError(
        f"{type(layer).__name__} has no GLU MLP: found {linears}. DaSS needs an MLP with gate, up and down projections "
        "(three linear modules, gate and up fused into one, or the 3-D parameters of experts)."
    )


def parameters_of(mlps: list[GluMlp]) -> tuple[str, ...]:
    """Names inside the layer of the parameters that hold these MLPs' matrices, each once."""
    return tuple(dict.fromkeys(place.parameter for mlp in mlps for place in mlp.places.values()))


def _glus_of(name: str, module: nn.Module) -> Iterator[GluMlp]:
    if (experts := _stacked_experts(module)) is not None:
        count, intermediate, hidden = experts
        for expert in range(count):
            places: dict[Projection, Place] = {
                "gate_proj": Place(f"{name}.{_FUSED}", (expert, slice(0, intermediate))),
                "up_proj": Place(f"{name}.{_FUSED}", (expert, slice(intermediate, 2 * intermediate))),
                "down_proj": Place(f"{name}.down_proj", (expert,)),
            }
            yield GluMlp(f"{name}.{expert}", module, expert, places, (intermediate, hidden))
    elif (linears := _three_linears(module)) is not None:
        hidden, intermediate = linears[2][1].weight.shape
        named = zip(PROJECTIONS, linears, strict=True)
        places = {projection: Place(f"{name}.{child}.weight") for projection, (child, _) in named}
        yield GluMlp(name, module, None, places, (intermediate, hidden))
    elif (sizes := _fused_linears(module)) is not None:
        intermediate, hidden = sizes
        places = {
            "gate_proj": Place(f"{name}.{_FUSED}.weight", (slice(0, intermediate),)),
            "up_proj": Place(f"{name}.{_FUSED}.weight", (slice(intermediate, 2 * intermediate),)),
            "down_proj": Place(f"{name}.down_proj.weight"),
        }
        yield GluMlp(name, module, None, places, sizes)


def _three_linears(module: nn.Module) -> list[tuple[str, nn.Linear]] | None:
    """gate, up and down: by their usual names, else by their shapes when exactly three linears fit."""
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    for names in _NAMED:
        if linears.keys() >= set(names):
            chosen = [(name, linears[name]) for name in names]
            return chosen if _fit(*(linear for _, linear in chosen)) else None
    if len(linears) != 3:
        return None
    for name, down in linears.items():
        others = [(other, linear) for other, linear in linears.items() if other != name]
        others.sort(key=lambda each: "gate" not in each[0])  # which of the two is gated changes no score
        if down.in_features != down.out_features and _fit(others[0][1], others[1][1], down):
            return [*others, (name, down)]
    return None


def _fit(gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> bool:
    return gate.weight.shape == up.weight.shape == down.weight.T.shape


def _fused_linears(module: nn.Module) -> tuple[int, int] | None:
    children = dict(module.named_children())
    fused, down = children.get(_FUSED), children.get("down_proj")
    if not isinstance(fused, nn.Linear) or not isinstance(down, nn.Linear):
        return None
    hidden, intermediate = down.weight.shape
    return (intermediate, hidden) if fused.weight.shape == (2 * intermediate, hidden) else None


def _stacked_experts(module: nn.Module) -> tuple[int, int, int] | None:
    """(experts, I, H) of a module that holds its experts as transformers does: gate rows first, then up rows."""
    fused, down = module._parameters.get(_FUSED), module._parameters.get("down_proj")
    if fused is None or down is None or down.dim() != 3:
        return None
    count, hidden, intermediate = down.shape
    plain = getattr(module, "is_concatenated", True) and not getattr(module, "is_transposed", False)
    if not plain or getattr(module, "has_bias", False) or fused.shape != (count, 2 * intermediate, hidden):
        return None
    return count, intermediate, hidden


def _is_linear_like(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear
