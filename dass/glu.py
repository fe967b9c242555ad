"""Finding the GLU MLP of a decoder layer by its structure, whatever the family is called.

A GLU MLP is a module with three linear children, gate (I, H), up (I, H) and down (H, I), or with gate and up fused
into one linear (2I, H), gate rows first (Phi-3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dass.errors import InputError
from dass.score import PROJECTIONS, Projection

_FUSED = "gate_up_proj"


@dataclass(frozen=True)
class GluMlp:
    """The GLU MLP of one decoder layer.

    Attributes:
        name: its name inside the layer, for example "mlp".
        module: the module itself.
        is_fused: gate and up are one linear.
    """

    name: str
    module: nn.Module
    is_fused: bool

    @property
    def down(self) -> nn.Linear:
        """The down projection."""
        return self._linear("down_proj")

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the pruned parameters inside the layer."""
        children = (_FUSED, "down_proj") if self.is_fused else PROJECTIONS
        return tuple(f"{self.name}.{child}.weight" for child in children)

    @property
    def sizes(self) -> tuple[int, int]:
        """(I, H)."""
        hidden, intermediate = self.down.weight.shape
        return intermediate, hidden

    def split(self, tensors: dict[str, Tensor]) -> dict[Projection, Tensor]:
        """Views of gate, up and down in a dict keyed by `weight_names` (weights, or masks of their shape)."""
        if not self.is_fused:
            return {projection: tensors[f"{self.name}.{projection}.weight"] for projection in PROJECTIONS}
        gate, up = tensors[f"{self.name}.{_FUSED}.weight"].chunk(2)
        return {"gate_proj": gate, "up_proj": up, "down_proj": tensors[f"{self.name}.down_proj.weight"]}

    def join(self, tensors: dict[Projection, Tensor]) -> dict[str, Tensor]:
        """Undo `split`: a dict keyed by `weight_names`."""
        if not self.is_fused:
            return {f"{self.name}.{projection}.weight": tensors[projection] for projection in PROJECTIONS}
        fused = torch.cat([tensors["gate_proj"], tensors["up_proj"]])
        return {f"{self.name}.{_FUSED}.weight": fused, f"{self.name}.down_proj.weight": tensors["down_proj"]}

    def weights(self) -> dict[str, Tensor]:
        """The parameters as they stand in the module, keyed by `weight_names`."""
        return {name: self.module.get_parameter(name.removeprefix(f"{self.name}.")) for name in self.weight_names}

    def _linear(self, child: str) -> nn.Linear:
        linear = self.module.get_submodule(child)
        assert isinstance(linear, nn.Linear)
        return linear


def find_glu(layer: nn.Module) -> GluMlp:
    """The GLU MLP inside one decoder layer.

    Raises:
        InputError: there is none, or more than one. The message names the linear modules that were found.
    """
    found = [mlp for name, module in layer.named_modules() if (mlp := _as_glu(name, module)) is not None]
    if len(found) == 1:
        return found[0]
    linears = ", ".join(name for name, module in layer.named_modules() if _is_linear_like(module)) or "no linear module"
    problem = "no GLU MLP" if not found else f"{len(found)} GLU MLPs ({', '.join(mlp.name for mlp in found)})"
    raise InputError(
        f"{type(layer).__name__} has {problem}: found {linears}. "
        "DaSS needs one MLP a layer with gate_proj, up_proj and down_proj (or gate_up_proj and down_proj)."
    )


def _as_glu(name: str, module: nn.Module) -> GluMlp | None:
    children = dict(module.named_children())
    down = children.get("down_proj")
    if not name or not isinstance(down, nn.Linear):
        return None
    hidden, intermediate = down.weight.shape
    gate, up, fused = children.get("gate_proj"), children.get("up_proj"), children.get(_FUSED)
    if isinstance(gate, nn.Linear) and isinstance(up, nn.Linear):
        if gate.weight.shape == up.weight.shape == (intermediate, hidden):
            return GluMlp(name, module, is_fused=False)
    elif isinstance(fused, nn.Linear) and fused.weight.shape == (2 * intermediate, hidden):
        return GluMlp(name, module, is_fused=True)
    return None


def _is_linear_like(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear
