"""A model in memory that wears masks for a while: what is measured of it is what the pruned checkpoint would give."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dass.errors import InputError
from dass.masks.mask_file import check_masks_fit, pruned_weight
from dass.masks.updates import Updates
from dass.model.checkpoint import Checkpoint


def holds_as_stored(model: nn.Module, base: Checkpoint, names: Iterable[str]) -> bool:
    """Whether a model that was loaded from a checkpoint has these stored tensors as parameters of their own.

    A library may join or rename them on the way (experts of a layer, say): then masks cannot be put on in memory.

    Args:
        model: the loaded model, dense.
        base: the checkpoint.
        names: stored tensor names.
    """
    parameters = dict(model.named_parameters())
    return all(
        name in parameters
        and name in base.stored
        and tuple(parameters[name].shape) == base.shape(name)
        and torch.equal(parameters[name].cpu(), base.load([name])[name].to(parameters[name].dtype))
        for name in names
    )


@contextmanager
def pruned_in_place(
    model: nn.Module, base: Checkpoint, masks: Mapping[str, Tensor], updates: Updates
) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Prune a loaded model in place, and give it back dense at the end.

    Args:
        model: for which `holds_as_stored` is true of all that changes.
        base: the checkpoint that it was loaded from.
        masks: stored tensor name -> keep mask.
        updates: new values, and tuned tensors whole.

    Yields:
        Every tensor of the pruned checkpoint in turn, as `Checkpoint.iterate` would give it; read from `base`.

    Raises:
        InputError: the masks are for another base.
    """
    check_masks_fit(base, masks)
    parameters = dict(model.named_parameters())
    changed = sorted({*masks, *updates})
    if lacking := [name for name in changed if name not in parameters]:
        raise InputError(
            f"{type(model).__name__} has no parameter {lacking[0]}: write the pruned checkpoint and load it."
        )
    try:
        with torch.no_grad():
            for name, weight in _pruned(base, changed, masks, updates):
                parameters[name].copy_(weight)
        yield _pruned(base, base.stored, masks, updates)
    finally:
        with torch.no_grad():
            for name in changed:
                parameters[name].copy_(base.load([name])[name])


def _pruned(
    base: Checkpoint, names: Iterable[str], masks: Mapping[str, Tensor], updates: Updates
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        stored = base.load([name])[name]
        changed = pruned_weight(name, stored, masks, updates)
        yield name, stored if changed is None else changed
