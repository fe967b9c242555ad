"""A model divided among ranks (torch's FSDP2): each holds its part of every layer.

A layer is whole only while it is computed. Embeddings and head, which are not trained, are whole on each rank.
A tensor of a divided model is a DTensor, cut along its first axis; the functions here also take tensors that are not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from dass.engine.ranks import Ranks
from dass.model.text_model import find_layers


def divide(model: PreTrainedModel, ranks: Ranks, device: torch.device, also: Sequence[nn.Module] = ()) -> None:
    """Leave each rank its part of a model's decoder layers, on its device; the rest moves there whole.

    Gradients of what is divided are added up over the ranks in the backward pass, which every rank has to run equally
    often.

    Args:
        model: the same on each rank. Changed in place.
        ranks: of a group that torch.distributed has set up.
        device: of this rank.
        also: modules outside the layers that are trained.
    """
    _, layers = find_layers(model)
    mesh = init_device_mesh(device.type, (ranks.size,))
    for module in [*layers, *also]:
        part = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(enable=True)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, put together from the ranks: every one of them has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def here(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: writing into it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, on the tensor's device and divided as the tensor is."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
