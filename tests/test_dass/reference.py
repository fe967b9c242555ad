"""The published procedure written the plain way, to check the engine against.

One window at a time, hooks on every MLP, two full passes a layer, full sorts. Written from the method's definition;
shares no code with dass/.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def reference_prune(
    model: PreTrainedModel, input_ids: Tensor, method: str, sparsity: float, n_m: tuple[int, int] | None
) -> dict[str, Tensor]:
    """Prune `model` in place; returns parameter name -> keep mask."""
    keep: dict[str, Tensor] = {}
    layers = model.model.layers
    with torch.no_grad():
        for index, layer in enumerate(layers):
            mlp = layer.mlp
            squares: dict[str, Tensor] = {}

            def add(name: str, value: Tensor, squares: dict[str, Tensor] = squares) -> None:
                total = value.double().reshape(-1, value.shape[-1]).square().sum(0)
                squares[name] = squares.get(name, torch.zeros_like(total)) + total

            hooks = [
                mlp.gate_proj.register_forward_pre_hook(lambda _, args, add=add: add("x", args[0])),
                mlp.down_proj.register_forward_pre_hook(lambda _, args, add=add: add("z", args[0])),
            ]
            # Layers before this one are already pruned: a run of the whole model gives this layer its true inputs.
            for window in input_ids:
                model(input_ids=window[None], use_cache=False)
            for hook in hooks:
                hook.remove()
            x, z = squares["x"].sqrt(), squares["z"].sqrt()
            for name in ("gate_proj", "up_proj", "down_proj"):
                linear: nn.Linear = getattr(mlp, name)
                score = linear.weight.abs().double()
                if method == "dass":
                    score = score * (z[None, :] if name == "down_proj" else z[:, None] ** 0.5)
                elif method == "wanda":
                    score = score * (z if name == "down_proj" else x)[None, :]
                mask = _select(score, method, name, sparsity, n_m)
                linear.weight.data = torch.where(mask, linear.weight, torch.zeros_like(linear.weight))
                keep[f"model.layers.{index}.mlp.{name}.weight"] = mask
    return keep


def _select(score: Tensor, method: str, name: str, sparsity: float, n_m: tuple[int, int] | None) -> Tensor:
    along_rows = method != "dass" or name == "down_proj"
    work = score if along_rows else score.T
    if n_m is not None:
        groups = work.reshape(-1, n_m[1])
        removed = n_m[1] - n_m[0]
    elif method == "magnitude":
        groups, removed = work.reshape(1, -1), int(work.numel() * sparsity)
    else:
        groups, removed = work, int(work.shape[1] * sparsity)
    order = groups.sort(dim=1, stable=True).indices[:, :removed]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False).reshape(work.shape)
    return mask if along_rows else mask.T
