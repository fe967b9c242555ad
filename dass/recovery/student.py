"""The pruned model in memory: base × masks × updates, what of it is trained, and how its zeros stay zeros."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from dass.engine.ranks import Ranks
from dass.errors import InputError, NumericalError
from dass.masks.updates import Updates
from dass.method.mask import zero_removed_
from dass.model.checkpoint import Checkpoint
from dass.model.names import StoredNames
from dass.model.text_model import find_layers
from dass.recovery.divided import divide, here, like, whole
from dass.recovery.lora import Lora
from dass.recovery.recipe import Train

_NORM = re.compile("norm", re.IGNORECASE)


class Student:
    """A pruned model to be trained.

    Attributes:
        model: the causal LM, float32, in evaluation mode: nothing is dropped out.
        trained: what the optimiser changes, by name.
        is_divided: whether each rank holds its part only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        base: Checkpoint,
        masks: Mapping[str, Tensor],
        updates: Updates,
        train: Train,
        lora_rank: int = 16,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """Prune the model, and choose what is trained.

        Args:
            model: the base's, float32. Changed in place.
            base: the checkpoint that it was loaded from.
            masks: stored tensor name -> keep mask.
            updates: new values that the pruned model has already.
            train: what is trained.
            lora_rank, seed: of LoRA.
            device: where to compute; None: where the model is.

        Raises:
            InputError: a mask or an update has no place in the model; there is nothing to train; or what would be
                trained is not stored as it is, so that no checkpoint could hold its new values.
        """
        if device is not None:
            model.to(device)  # type: ignore[arg-type]
        self.model, self._base, self._masks = model, base, masks
        self._names = StoredNames.of(base, model)
        self._keep: dict[str, Tensor] = {}  # of whole parameters
        self.is_divided = False
        self._prune(updates)
        chosen = self._chosen(train)
        if not chosen:
            raise InputError(f"recover.train is {train!r}, and {type(model).__name__} has no such parameter.")
        for name in chosen:
            self._names.pieces(name)  # refuses one that transformers computes
        model.requires_grad_(False)
        self._changed = chosen
        self.trained: dict[str, nn.Parameter] = {}
        if train == "lora":
            self._add_lora(lora_rank, seed)
        else:
            for name in chosen:
                self.trained[name] = model.get_parameter(name)
                self.trained[name].requires_grad_()

    def divide(self, ranks: Ranks, device: torch.device) -> None:
        """Leave each rank its part of the decoder layers; not of a model that LoRA changes.

        Args:
            ranks: all of which have made the same student on the host.
            device: of this rank.
        """
        layers_name, _ = find_layers(self.model)
        outside = {name.rpartition(".")[0] for name in self._changed if not name.startswith(f"{layers_name}.")}
        divide(self.model, ranks, device, [self.model.get_submodule(owner) for owner in sorted(outside)])
        self.trained = {name: self.model.get_parameter(name) for name in self._changed}
        self._keep = {name: here(like(keep, self.model.get_parameter(name))) for name, keep in self._keep.items()}
        self.is_divided = True

    def hold_gradients(self) -> None:
        """No gradient where the masks remove. Call behind the backward pass."""
        for name, parameter in self.trained.items():
            if name in self._keep and parameter.grad is not None:
                zero_removed_(here(parameter.grad), self._keep[name])

    @torch.no_grad()
    def hold_weights(self) -> None:
        """+0.0 where the masks remove. Call behind the optimiser's step."""
        for name, parameter in self.trained.items():
            if name in self._keep:
                zero_removed_(here(parameter), self._keep[name])

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Give what is trained other values, by name."""
        for name, parameter in self.trained.items():
            here(parameter).copy_(here(like(values[name], parameter)))

    @torch.no_grad()
    def stored_values(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the parameters that were trained: stored name -> value in the base's type.

        Raises:
            NumericalError: a value that the base's type cannot hold.
        """
        found: dict[str, Tensor] = {}
        for name in self._changed:
            weight = self._weight(name)
            for stored, value in self._names.to_stored({name: weight.detach().cpu()}).items():
                found[stored] = value.to(self._base.dtype(stored), copy=True)
                if not found[stored].isfinite().all():
                    raise NumericalError(f"{stored} has trained values that {self._base.dtype(stored)} does not hold.")
        return found

    @torch.no_grad()
    def round_(self) -> None:
        """Give the model the very values that `stored_values` gives: what is measured then is what is kept."""
        for name in self._changed:
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if parametrize.is_parametrized(module, leaf):
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=True)
            weight = self.model.get_parameter(name)
            rounded = whole(weight).clone()
            for piece in self._names.pieces(name):
                rounded[piece.at] = rounded[piece.at].to(self._base.dtype(piece.stored)).to(rounded.dtype)
            here(weight).copy_(here(like(rounded, weight)))

    def _weight(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        weight = getattr(self.model.get_submodule(owner), leaf)  # with LoRA a property, that gives the changed one
        assert isinstance(weight, Tensor)
        return whole(weight)

    @torch.no_grad()
    def _prune(self, updates: Updates) -> None:
        placed: set[str] = set()
        for name, parameter in self.model.named_parameters():
            pieces = []
            with suppress(InputError):  # one that transformers computes: no mask is for it
                pieces = self._names.pieces(name)
            for piece in pieces:
                keep = self._masks.get(piece.stored)
                if piece.stored in updates:
                    parameter[piece.at] = updates.weight(piece.stored, keep).to(parameter.device, parameter.dtype)
                if keep is not None:
                    whole_keep = self._keep.setdefault(name, torch.ones_like(parameter, dtype=torch.bool))
                    whole_keep[piece.at] = keep.to(parameter.device)
                placed.add(piece.stored)
            if name in self._keep:
                zero_removed_(parameter, self._keep[name])
        if lost := sorted({*self._masks, *updates} - placed):
            raise InputError(f"{lost[0]} is pruned, and {type(self.model).__name__} has no place for it.")

    def _chosen(self, train: Train) -> list[str]:
        """Names of the model's parameters, in its order."""
        inside = self._inside()
        norms = {
            f"{owner}.{leaf}"
            for owner, module in self.model.named_modules()
            if _NORM.search(type(module).__name__)
            for leaf, _ in module.named_parameters(recurse=False)
        }
        biases = {f"{name.removesuffix('.weight')}.bias" for name in self._keep}
        of: dict[Train, set[str]] = {
            "mlp": {*self._keep, *biases},
            "norms": norms,
            "mlp+norms": {*self._keep, *biases, *norms},
            "all": set(inside),
            "lora": {*self._keep, *self._matrices()},
        }
        return [name for name in inside if name in of[train]]

    def _inside(self) -> list[str]:
        """Parameters of the decoder layers, and of the norm behind them; neither embeddings nor head."""
        layers_name, _ = find_layers(self.model)
        decoder, head = layers_name.rpartition(".")[0], self.model.get_output_embeddings()
        outside = {id(parameter) for each in (self.model.get_input_embeddings(), head) for parameter in _of(each)}
        beside = self.model.get_submodule(decoder).named_children()
        last = [f"{decoder}.{name}." for name, module in beside if _NORM.search(type(module).__name__)]
        return [
            name
            for name, parameter in self.model.named_parameters()
            if name.startswith((f"{layers_name}.", *last)) and id(parameter) not in outside
        ]

    def _matrices(self) -> set[str]:
        layers_name, _ = find_layers(self.model)
        return {
            f"{name}.weight"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(f"{layers_name}.")
        }

    def _add_lora(self, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name in self._changed:
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            lora = Lora(self.model.get_parameter(name).detach(), rank, self._keep.get(name), generator)
            parametrize.register_parametrization(module, leaf, lora)
            self.trained |= {f"{name}.lora_a": lora.a, f"{name}.lora_b": lora.b}


def _of(module: nn.Module | None) -> Iterator[nn.Parameter]:
    return iter(()) if module is None else module.parameters()
