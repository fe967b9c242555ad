"""Which tensors of a checkpoint make up a parameter of the model.

Transformers renames tensors and merges experts while it loads: a Mixtral checkpoint holds `w1`, `w3` and `w2` of every
expert, the module one `gate_up_proj` (E, 2I, H) and one `down_proj` (E, H, I) a layer. The rules are transformers' own
(`get_model_conversion_mapping`); here they are followed on names and shapes instead of on values, so that a layer can
be read, and its masks written, one stored tensor at a time.

Only rules that move whole tensors into place are followed. A rule that computes (a transpose, a permutation for rotary
embeddings) would need its inverse for every mask, and is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from dass.errors import InputError
from dass.model.checkpoint import Checkpoint

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Piece:
    """A stored tensor and its place in a parameter.

    Attributes:
        stored: the tensor's name in the checkpoint.
        at: parameter[at] is that tensor; () is the whole parameter.
    """

    stored: str
    at: Index


class StoredNames:
    """The pieces of every parameter of a model, for one checkpoint."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel) -> None:
        """Follow the rules for every stored name.

        Args:
            shapes: name -> shape of each tensor in the checkpoint.
            model: the model; its parameters may be on the meta device.
        """
        self._shapes, self._model = shapes, model
        self._expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._recipes: dict[str, _Recipe] = {}
        self._gather()

    @classmethod
    def of(cls, checkpoint: Checkpoint, model: PreTrainedModel) -> Self:
        """The names of a checkpoint's tensors in a model."""
        return cls({name: place.shape for name, place in checkpoint.stored.items()}, model)

    def pieces(self, parameter: str) -> list[Piece]:
        """The stored tensors that make up a parameter (or a persistent buffer), by its full name.

        Raises:
            InputError: the checkpoint does not hold it, holds only a part of it or another shape, or transformers
                computes it from what is stored.
        """
        recipe = self._recipe(parameter)
        if recipe is None:
            raise InputError(f"The checkpoint does not hold {parameter} of {type(self._model).__name__}.")
        block = recipe.follow(parameter, self._shapes)
        if block.shape != self._expected[parameter]:
            raise InputError(
                f"{parameter}: the checkpoint's {len(block.pieces)} tensor(s), such as {block.pieces[0].stored}, make "
                f"{block.shape}, and the config says {self._expected[parameter]}. Fetch the checkpoint again."
            )
        return [Piece(piece.stored, _shortened(piece.at, block.shape)) for piece in block.pieces]

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Shape of a parameter of the model."""
        return self._expected[parameter]

    def __contains__(self, parameter: str) -> bool:
        """Whether the checkpoint says anything about a parameter."""
        return self._recipe(parameter) is not None

    def unmatched(self) -> tuple[list[str], list[str]]:
        """Parameters and buffers that are not stored, and stored tensors that the model has no place for.

        What transformers itself passes over without harm, such as old rotary tables, is in neither.
        """
        info = LoadStateDictInfo(
            missing_keys={name for name in self._expected if name not in self},
            unexpected_keys=self._recipes.keys() - self._expected.keys(),
            mismatched_keys=set(),
            error_msgs=[],
            conversion_errors={},
            skipped_pp_keys=set(),
        )
        self._model._adjust_missing_and_unexpected_keys(info)
        stored = {name for target in info.unexpected_keys for name in self._recipes[target].stored}
        return sorted(info.missing_keys, key=dot_natural_key), sorted(stored, key=dot_natural_key)

    def check_shapes(self) -> None:
        """Compare the shape of every stored parameter with the config's; what transformers computes is left to it.

        Raises:
            InputError: as `pieces`.
        """
        for name in self._expected:
            recipe = self._recipe(name)
            if recipe is not None and not recipe.is_computed:
                self.pieces(name)

    def stored_twice(self) -> list[tuple[str, str]]:
        """Pairs of parameters that the model ties, and the checkpoint holds each for itself."""
        return [pair for pair in self._tied.items() if all(name in self._recipes for name in pair)]

    def tied_to(self, parameter: str) -> str | None:
        """The parameter whose value this one shares; None: it has a value of its own."""
        return self._tied.get(parameter)

    def to_stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut tensors of parameters' shapes (weights or masks) into contiguous tensors keyed by stored name."""
        return {
            piece.stored: tensor[piece.at].contiguous()
            for parameter, tensor in tensors.items()
            for piece in self.pieces(parameter)
        }

    def from_stored(self, parameters: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `to_stored` for those of `parameters` whose pieces are all in `tensors`."""
        joined: dict[str, Tensor] = {}
        for parameter in parameters:
            pieces = self.pieces(parameter)
            if not all(piece.stored in tensors for piece in pieces):
                continue
            first = tensors[pieces[0].stored]
            if pieces[0].at == ():
                joined[parameter] = first
                continue
            whole = torch.empty(self._expected[parameter], dtype=first.dtype, device=first.device)
            for piece in pieces:
                whole[piece.at] = tensors[piece.stored]
            joined[parameter] = whole
        return joined

    def _gather(self) -> None:
        """Sort the stored names to the parameters they go into, as transformers' loader does."""
        rules = get_model_conversion_mapping(self._model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        state, prefix = self._model.state_dict(), self._model.base_model_prefix
        for stored in sorted(self._shapes, key=dot_natural_key):  # this order numbers the experts
            target, pattern = rename_source_key(stored, renamings, converters, prefix, state)
            if target not in state and stored in state:
                target, pattern = rename_source_key(stored, [], [], prefix, state)
            converter = None if pattern is None else converter_of[pattern]
            for name in [target] if converter is None else _targets(target, converter):
                recipe = self._recipes.setdefault(name, _Recipe(converter, {}))
                recipe.sources.setdefault(pattern or "", []).append(stored)

    def _recipe(self, parameter: str) -> "_Recipe | None":
        """What makes up a parameter: of those that share their values, a checkpoint may hold any."""
        source = self._tied.get(parameter, parameter)
        sharing = [parameter, source, *(target for target, other in self._tied.items() if other == source)]
        return next((self._recipes[name] for name in sharing if name in self._recipes), None)

    @cached_property
    def _tied(self) -> dict[str, str]:
        """Parameter -> the one whose values it shares."""
        return getattr(self._model, "all_tied_weights_keys", None) or {}


@dataclass(frozen=True)
class _Block:
    """A tensor being put together: `at` of every piece has one entry for each axis of `shape`."""

    shape: tuple[int, ...]
    pieces: list[Piece]


@dataclass(frozen=True)
class _Recipe:
    """What goes into one parameter: stored names by the source pattern they matched, and the rule (None: renamed)."""

    converter: WeightConverter | None
    sources: dict[str, list[str]]

    @property
    def stored(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]

    @property
    def is_computed(self) -> bool:
        """Whether the rule does more than move whole tensors into place."""
        operations = self.converter.operations if self.converter else []
        return not all(isinstance(operation, MergeModulelist | Concatenate) for operation in operations)

    def follow(self, parameter: str, shapes: Mapping[str, tuple[int, ...]]) -> _Block:
        order = list(self.sources) if self.converter is None else self.converter.source_patterns
        groups = [
            [_whole(stored, shapes[stored]) for stored in self.sources[pattern]]
            for pattern in order
            if pattern in self.sources
        ]
        for operation in self.converter.operations if self.converter else []:
            groups = _apply(operation, groups, parameter)
        if len(groups) != 1 or len(groups[0]) != 1:
            raise InputError(
                f"{parameter}: several stored tensors claim to be it, such as "
                f"{groups[0][0].pieces[0].stored} and {groups[-1][-1].pieces[0].stored}. Fetch the checkpoint again."
            )
        return groups[0][0]


def _apply(operation: ConversionOps, groups: list[list[_Block]], parameter: str) -> list[list[_Block]]:
    if isinstance(operation, MergeModulelist):
        return [[_stack(blocks, operation.dim, parameter)] for blocks in groups]
    if isinstance(operation, Concatenate):
        return [[_concatenate([block for blocks in groups for block in blocks], operation.dim, parameter)]]
    stored = groups[0][0].pieces[0].stored
    raise InputError(
        f"{parameter} is computed from {stored} with {type(operation).__name__}: expected a checkpoint whose tensors "
        "are at most renamed, stacked or concatenated. Load this model whole and prune it in memory with dass.prune."
    )


def _whole(stored: str, shape: tuple[int, ...]) -> _Block:
    return _Block(shape, [Piece(stored, tuple(slice(0, size) for size in shape))])


def _stack(blocks: list[_Block], dim: int, parameter: str) -> _Block:
    """torch.stack on places."""
    shape = blocks[0].shape
    _check_shapes(blocks, [block.shape == shape for block in blocks], parameter)
    axis = dim % (len(shape) + 1)
    pieces = [
        Piece(piece.stored, (*piece.at[:axis], index, *piece.at[axis:]))
        for index, block in enumerate(blocks)
        for piece in block.pieces
    ]
    return _Block((*shape[:axis], len(blocks), *shape[axis:]), pieces)


def _concatenate(blocks: list[_Block], dim: int, parameter: str) -> _Block:
    """torch.cat on places."""
    shape = blocks[0].shape
    axis = dim % len(shape)
    beside = [(*block.shape[:axis], *block.shape[axis + 1 :]) for block in blocks]
    _check_shapes(blocks, [other == beside[0] for other in beside], parameter)
    pieces: list[Piece] = []
    offset = 0
    for block in blocks:
        pieces += [
            Piece(piece.stored, (*piece.at[:axis], _moved(piece.at[axis], offset), *piece.at[axis + 1 :]))
            for piece in block.pieces
        ]
        offset += block.shape[axis]
    return _Block((*shape[:axis], offset, *shape[axis + 1 :]), pieces)


def _moved(entry: int | slice, offset: int) -> int | slice:
    return entry + offset if isinstance(entry, int) else slice(entry.start + offset, entry.stop + offset)


def _check_shapes(blocks: list[_Block], fits: list[bool], parameter: str) -> None:
    if not all(fits):
        odd = blocks[fits.index(False)]
        raise InputError(
            f"{parameter}: {odd.pieces[0].stored} makes {odd.shape} beside {blocks[0].pieces[0].stored}'s "
            f"{blocks[0].shape}, so they cannot be joined. Fetch the checkpoint again."
        )


def _shortened(at: Index, shape: tuple[int, ...]) -> Index:
    """Without trailing entries that take a whole axis."""
    entries = list(at)
    while entries and entries[-1] == slice(0, shape[len(entries) - 1]):
        entries.pop()
    return tuple(entries)


def _targets(target: str, converter: WeightConverter) -> list[str]:
    """Every parameter that a rule makes, from the name of the first."""
    first, *more = converter.target_patterns
    return [target, *(target.replace(first, other) for other in more)]
