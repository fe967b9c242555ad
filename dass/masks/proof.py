"""Proof that a pruned checkpoint is its base times its masks, bit for bit, and that the masks obey their pattern.

Nothing here trusts what a pruning run said of itself but its masks; tensors are compared as bits, one at a time.
"""

import re
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dass.masks.matrices import SPELLED, matrices, projections_of
from dass.masks.updates import Updates
from dass.method.mask import zero_removed_
from dass.method.methods import Layout, Method, Projection, competition_axis
from dass.method.pattern import Pattern, parse_pattern
from dass.model.checkpoint import Checkpoint


class ProofError(Exception):
    """Something is not as the masks and the manifest say. The message is one line and names the first place."""


def prove_weights(
    base: Checkpoint,
    pruned: Checkpoint,
    masks: Mapping[str, Tensor],
    updates: Updates | None,
    tuned: Collection[str] = (),
) -> None:
    """Compare every tensor of a pruned checkpoint with what base, masks and updates make of it.

    Removed weights are +0.0; kept ones are the base's bits, or those of `updates` where it names the tensor; tensors
    that `tuned` names are those of `updates`; every other tensor, and the files' headers, are the base's bytes.

    Args:
        base: the dense checkpoint.
        pruned: the checkpoint in question.
        masks: stored tensor name -> keep mask, bool.
        updates: new values of the kept weights of some of these tensors, and tuned tensors whole.
        tuned: the tensors without a mask that the signed record lets differ from the base's.

    Raises:
        ProofError: names the first tensor and entry that differ, and how; or the masks are for another base.
    """
    for name in masks:
        if name not in base.stored:
            raise ProofError(f"the masks name {name}, which the base does not hold: they belong to another base.")
    for name in updates or ():
        if name not in masks and name not in tuned:
            raise ProofError(f"the updates name {name}, which the masks do not: they belong to another run.")
    for name in tuned:
        if name in masks or name not in base.stored or updates is None or name not in updates:
            raise ProofError(f"{name} is said to be tuned, and there is no new value of it for this base.")
    _compare_layouts(base, pruned)
    for name in base.stored:
        expected, found = base.bits(name), pruned.bits(name)
        if name not in masks:
            how = "is not pruned, and differs from the base's"
            if updates is not None and name in tuned:
                how = "is tuned, and differs from the stored value"
                expected = _bits(updates[name], like=expected)
                if expected.shape != found.shape:
                    raise ProofError(f"{name} is stored as {tuple(expected.shape)}, and the base's is another shape.")
            if (at := _first_difference(expected, found)) is not None:
                raise ProofError(f"{name} {how} at {at}.")
            continue
        keep = masks[name]
        if keep.shape != base.shape(name):
            raise ProofError(f"{name}: the mask is {tuple(keep.shape)}, the weight {base.shape(name)}: another base's.")
        is_updated = updates is not None and name in updates
        if updates is not None and is_updated:
            expected = _bits(updates.weight(name, keep), like=expected)
        else:
            zero_removed_(expected, keep)
        if (at := _first_difference(expected, found)) is not None:
            source = "the updated value" if is_updated else "the base's"
            raise ProofError(f"{name}{list(at)} {_what_differs(keep, found, at, source)}.")


def _compare_layouts(base: Checkpoint, pruned: Checkpoint) -> None:
    if base.files != pruned.files:
        raise ProofError(f"the weights are in {', '.join(pruned.files)}, and the base's in {', '.join(base.files)}.")
    for name, place in base.stored.items():
        there = pruned.stored.get(name)
        if there is None or pruned.file_of[name] != base.file_of[name]:
            raise ProofError(f"{name} is missing from {base.file_of[name]}.")
        if (there.dtype, there.shape) != (place.dtype, place.shape):
            raise ProofError(f"{name} is {there.dtype} {there.shape}, and the base's is {place.dtype} {place.shape}.")
    for name in pruned.stored:
        if name not in base.stored:
            raise ProofError(f"{name} is not in the base.")
    for file in base.files:
        if base.header(file) != pruned.header(file):
            raise ProofError(f"{file}: the header is not the base's.")


def _bits(values: Tensor, like: Tensor) -> Tensor:
    if values.element_size() != like.element_size():
        raise ProofError(f"updated values are {values.dtype}: another type than the base's.")
    return values.view(like.dtype)


def _first_difference(expected: Tensor, found: Tensor) -> tuple[int, ...] | None:
    if torch.equal(expected, found):
        return None
    first = int((expected != found).view(-1).to(torch.uint8).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(first), expected.shape))


def _what_differs(keep: Tensor, found: Tensor, at: tuple[int, ...], source: str) -> str:
    if keep[at]:
        return f"is kept, and is not {source}"
    sign_only = int(found[at]) == torch.iinfo(found.dtype).min
    return f"was removed, and is {'−0.0' if sign_only else 'not zero'}: expected +0.0"


def prove_patterns(manifest: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Check that every matrix obeys its layer's pattern, on its axis, in every competing group.

    Args:
        manifest: settings.prune and layers are read.
        masks: stored tensor name -> keep mask, (O, C), or (E, O, C) for stacked experts.

    Raises:
        ProofError: names the first matrix and group that do not obey, a matrix whose part in the MLP is not known, or a
            layer with another score than the one that was asked for or chosen.
    """
    prune, layers = manifest["settings"]["prune"], {layer["layer"]: layer for layer in manifest["layers"]}
    removed: dict[tuple[int, Projection], list[int]] = {}
    for name, keep in masks.items():
        number = re.search(r"\.(\d+)\.", name)
        if number is None or int(number[1]) not in layers:
            raise ProofError(f"{name}: the manifest says nothing of its layer.")
        layer = layers[int(number[1])]
        pattern, method = _pattern(prune, layer), _method(manifest, layer)
        only = () if pattern is None else prune["only"]
        for projection, matrix in chain.from_iterable(matrices(keep, _held(name, masks))):
            lost = matrix.numel() - int(matrix.count_nonzero())
            if pattern is not None and projection in only:
                for axis in _axes(projection, pattern, method, prune["layout"]):
                    exact = prune["allocation"] == "uniform"
                    _check_groups(f"{name} ({projection})", matrix, pattern, axis, exact=exact)
            elif lost:
                raise ProofError(f"{name} ({projection}): it was to be left alone, and {lost} weights are removed.")
            removed.setdefault((layer["layer"], projection), []).extend((lost, matrix.numel()))
    for (index, projection), counts in removed.items():
        share = sum(counts[::2]) / sum(counts[1::2])
        told = layers[index]["sparsity"][projection]
        if abs(share - told) > 1e-9:
            raise ProofError(f"layer {index}: {projection} has lost {share:.6f}, and the manifest says {told:.6f}.")


def _pattern(prune: Mapping[str, Any], layer: Mapping[str, Any]) -> Pattern | None:
    """Under `owl` every layer has its own; an unstructured one's share is then the layer's own. None: skipped."""
    skipped = layer["layer"] in prune["skip_layers"]
    if skipped != (layer["pattern"] == "none"):
        raise ProofError(
            f"layer {layer['layer']} was {'not ' if skipped else ''}skipped, and the settings say otherwise."
        )
    if skipped:
        return None
    return parse_pattern(layer["pattern"], prune["sparsity"] if layer["pattern"] == "unstructured" else None)


def _method(manifest: Mapping[str, Any], layer: Mapping[str, Any]) -> Method:
    """What the layer's weights were chosen by: along its axis they compete. Under `auto` each layer has its own."""
    prune, auto = manifest["settings"]["prune"], manifest.get("auto")
    if prune["method"] != "auto":
        asked = {"method": prune["method"], "alpha": prune["alpha"] if prune["method"] == "dass" else None}
    elif auto is None:
        raise ProofError("the method is auto, and the manifest does not say what was chosen.")
    else:
        chosen = next(each for each in auto["proposals"] if each["name"] == auto["chosen"])
        asked = auto["candidates"][chosen["layers"][layer["layer"]]]
    for name, value in asked.items():
        if layer[name] != value:
            raise ProofError(f"layer {layer['layer']}: its {name} is {layer[name]}, and {value} was chosen for it.")
    method: Method = asked["method"]
    return method


def _axes(projection: Projection, pattern: Pattern, method: Method, layout: Layout) -> list[int | None]:
    if layout == "transposable" and projection != "down_proj":
        return [0, 1]
    return [competition_axis(projection, method, pattern, layout)]


def _held(name: str, masks: Mapping[str, Tensor]) -> tuple[Projection, ...]:
    held = projections_of(name, masks)
    if not held:
        raise ProofError(
            f"{name}: expected a matrix called {', '.join(SPELLED)}, to know along which axis it is pruned."
        )
    return held


def _check_groups(what: str, keep_OC: Tensor, pattern: Pattern, axis: int | None, *, exact: bool) -> None:
    if pattern.group is None and axis is None:
        return  # the whole matrix competes: its share is compared with the manifest's
    size = keep_OC.shape[axis or 0]
    if pattern.group is not None:
        if size % pattern.group:
            raise ProofError(f"{what}: {pattern} does not tile its axis {axis}.")
        groups = keep_OC.unflatten(axis or 0, (-1, pattern.group))
        kept = groups.sum(dim=2 if axis == 1 else 1, dtype=torch.int32)  # (O, groups) or (groups, C)
        expected = pattern.keep or 0
    else:
        kept = keep_OC.sum(dim=axis, keepdim=True, dtype=torch.int32)
        expected = size - pattern.removed_from(size) if exact else int(kept.view(-1)[0])
    wrong = (kept != expected).nonzero()
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        line, group = first if axis == 1 else first[::-1]
        raise ProofError(
            f"{what}: {'row' if axis == 1 else 'column'} {line}, group {group}: {int(kept[first])} kept, expected "
            f"{expected}. {pattern} does not hold along axis {axis}."
        )
