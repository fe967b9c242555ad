"""Finding the GLU MLPs of a decoder layer by their structure, whatever the family calls them.

A GLU MLP is three matrices, gate (I, H), up (I, H) and down (H, I), that lie somewhere in the layer's parameters: as
three linear modules (LLaMA, Gemma, Qwen), with gate and up fused into one (Phi-3), or as one expert's slice of the 3-D
parameters of a mixture (Mixtral, Qwen-MoE). A dense layer has one, a mixture one per expert and perhaps a shared one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from dass.errors import InputError
from dass.method.methods import PROJECTIONS, Projection

_MLP_LIKE = re.compile(r"mlp|expert|feedforward|ffn", re.IGNORECASE)
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
        if self.expert is not None and (own := _own_gating(self.module)) is not None:
            gated: Tensor = own(torch.cat([gate, up], dim=-1))
            return gated
        return self.activation(gate) * up

    @property
    def is_plain(self) -> bool:
        """Whether z is act(gate x) ⊙ (up x) and nothing else: tried on small matrices with large values."""
        if self.expert is not None:
            return _own_gating(self.module) is None
        return _gates_plainly(self)

    def own_intermediate(self, x: Tensor) -> Tensor:
        """z of the module's own weights, (..., H) to (..., I): what its forward gives the down projection."""
        if self.expert is not None or self.is_plain:
            return self.intermediate(x, self.weights())
        return _input_of(self.down, lambda: self.module(x))

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


def has_glu(layer: nn.Module) -> bool:
    """Whether a decoder layer has a GLU MLP."""
    return any(True for name, module in layer.named_modules() if name for _ in _glus_of(name, module))


def find_glus(layer: nn.Module) -> list[GluMlp]:
    """The GLU MLPs inside one decoder layer, in the order of its modules.

    Raises:
        InputError: there is none, and the message names the linear modules that were found; or beside those that were
            found there is an MLP in a layout that is not known, which would stay dense.
    """
    found = [mlp for name, module in layer.named_modules() if name for mlp in _glus_of(name, module)]
    if found:
        _refuse_half_a_layer(layer, found)
        return found
    linears = ", ".join(name for name, module in layer.named_modules() if _is_linear_like(module)) or "no linear module"
    raise InputError(
        f"{type(layer).__name__} has no GLU MLP: found {linears}. DaSS needs an MLP with gate, up and down projections "
        "(three linear modules, gate and up fused into one, or the 3-D parameters of experts)."
    )


def _refuse_half_a_layer(layer: nn.Module, found: list[GluMlp]) -> None:
    """A mixture of which only the shared expert is understood is not pruned by half without a word."""
    known = {place.parameter for mlp in found for place in mlp.places.values()}
    for name, module in layer.named_modules():
        if not name or isinstance(module, _ConvNd):
            continue
        inside = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        stacked = [key for key, value in module._parameters.items() if value is not None and value.dim() == 3]
        is_mlp = bool(stacked) or (_MLP_LIKE.search(type(module).__name__) and inside)
        beneath = any(mlp.expert is None and name.startswith(f"{mlp.name}.") for mlp in found)
        if is_mlp and not beneath and not any(parameter in known for parameter in inside):
            raise InputError(
                f"{type(layer).__name__}.{name} ({type(module).__name__}) is an MLP whose layout is not known, beside "
                f"{found[0].name}: expected every MLP of a layer with gate, up and down projections. It would stay "
                "dense, so nothing is pruned."
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


def _own_gating(experts: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """How experts gate (..., 2I) to (..., I) when they clamp or shift on the way; None when they only multiply."""
    method = getattr(type(experts), "_apply_gate", None)
    plain = method is None or method.__name__ == "_default_apply_gate"
    return None if plain else experts._apply_gate  # type: ignore[return-value]


def _input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module is given first while `run` runs, which ends there."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Seen

    hook = module.register_forward_pre_hook(stop)
    try:
        run()
    except _Seen:
        pass
    finally:
        hook.remove()
    return seen[0]


class _Seen(Exception):
    """Ends a forward once what was wanted from it has been seen."""


def _gates_plainly(mlp: GluMlp) -> bool:
    """Run the module's own forward with matrices of 8 neurons and values that a clamp or a threshold would show on."""
    hidden, neurons = 4, 8
    generator = torch.Generator().manual_seed(0)
    x = 8.0 * torch.randn(6, hidden, generator=generator, dtype=torch.float32)
    gate, up = (8.0 * torch.randn(neurons, hidden, generator=generator, dtype=torch.float32) for _ in range(2))
    values: dict[str, Tensor] = {}
    for projection, place in mlp.places.items():
        name = place.parameter.removeprefix(f"{mlp.name}.")
        if projection == "down_proj":
            values[name] = torch.zeros(hidden, neurons, dtype=torch.float32)
        else:
            values[name] = torch.cat([gate, up]) if place.at else (gate if projection == "gate_proj" else up)
    for name, parameter in mlp.module.named_parameters():
        if name not in values:  # biases: of the gated matrices, as wide as they are; of the last, of no weight here
            owner = name.removesuffix("bias") + "weight"
            rows = values[owner].shape[0] if owner in values else parameter.shape
            values[name] = torch.zeros(rows, dtype=torch.float32)
    try:
        activation = mlp.activation
        z = _input_of(mlp.down, lambda: torch.func.functional_call(mlp.module, values, (x,)))
    except Exception:  # it asks for more than its input, or has no activation: then it cannot be run on its own
        return False
    expected = activation(functional.linear(x, gate)) * functional.linear(x, up)
    return z.shape == expected.shape and torch.allclose(z, expected, rtol=1e-4, atol=1e-4)


def _is_linear_like(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear
