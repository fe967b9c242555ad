"""A model whose logits are made in slices, with gradients: the head's result is as wide as the vocabulary."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dass.measures.halves import halves

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}


class Body:
    """A causal LM up to its head, and the head."""

    def __init__(self, model: PreTrainedModel, probe_L: Tensor) -> None:
        """Args: a model in evaluation mode; some tokens, on its device, on which its halves are told apart."""
        self.model = model
        with torch.no_grad():
            self._parts = halves(model, probe_L)
        kind = "cpu" if model.device.type == "cpu" else "cuda"
        self._step = max(1, _LOGITS_AT_ONCE[kind] // model.config.get_text_config().vocab_size)

    def run(self, input_ids_BL: Tensor, with_layers: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the head is given (N, H), and the decoder layers' outputs where they are wanted.

        Where head and body cannot be told apart, the logits (N, V) themselves.
        """
        how = {"use_cache": False, "output_hidden_states": with_layers}
        if self._parts is None:
            output = self.model(input_ids=input_ids_BL, **how)
            states = output.logits
        else:
            output = self._parts.run(input_ids_BL, **how)
            states = output.last_hidden_state
        layers = tuple(output.hidden_states[1:]) if with_layers else ()
        return states.flatten(0, 1), layers

    def logits(self, states_nH: Tensor) -> Tensor:
        """Logits (n, V) of some tokens' states."""
        return states_nH if self._parts is None else self._parts.logits(states_nH)

    def slices(self, states_NH: Tensor) -> Iterator[slice]:
        """Parts of the tokens whose logits there is room for."""
        return (slice(start, start + self._step) for start in range(0, len(states_NH), self._step))
