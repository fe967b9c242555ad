"""A model that no library lists: its GLU can be found by what its layers are, not by what they are called.

Importing this file registers it with transformers' Auto classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from tests.models import HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY


class UnlistedConfig(PreTrainedConfig):
    """Sizes, under the usual names."""

    model_type = "unlisted"

    def __init__(
        self,
        hidden_size: int = HIDDEN,
        intermediate_size: int = INTERMEDIATE,
        num_hidden_layers: int = LAYERS,
        vocab_size: int = VOCABULARY,
        **more: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.vocab_size = vocab_size
        super().__init__(**more)


class Mixer(nn.Module):
    """Stands for attention: every token receives the mean of those up to it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)

    def forward(self, x_BTH: Tensor) -> Tensor:
        length_T = torch.arange(1, x_BTH.shape[1] + 1, device=x_BTH.device)[:, None]
        return self.out(self.value(x_BTH).cumsum(dim=1) / length_T.to(x_BTH.dtype))


class Feed(nn.Module):
    """drop(tanh(gate x) ⊙ lift x). The children are declared in another order than they are used in."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.drop = nn.Linear(intermediate, hidden, bias=False)
        self.lift = nn.Linear(hidden, intermediate, bias=False)
        self.gate = nn.Linear(hidden, intermediate, bias=False)

    def forward(self, x_BTH: Tensor) -> Tensor:
        return self.drop(self.gate(x_BTH).tanh() * self.lift(x_BTH))


class Block(nn.Module):
    """A decoder layer: two residual branches, each behind a norm."""

    def __init__(self, config: UnlistedConfig) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.mixer = Mixer(config.hidden_size)
        self.feed = Feed(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        hidden_BTH = hidden_BTH + self.mixer(self.first(hidden_BTH))
        return hidden_BTH + self.feed(self.second(hidden_BTH))


class UnlistedPreTrained(PreTrainedModel):
    """What both classes below share."""

    config_class = UnlistedConfig
    base_model_prefix = "trunk"


class UnlistedModel(UnlistedPreTrained):
    """Embeddings, blocks and a final norm."""

    def __init__(self, config: UnlistedConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        hidden_BTH = self.tokens(input_ids)
        for block in self.blocks:
            hidden_BTH = block(hidden_BTH)
        return BaseModelOutput(last_hidden_state=self.last(hidden_BTH))


class UnlistedForCausalLM(UnlistedPreTrained, GenerationMixin):
    """The model with its head."""

    def __init__(self, config: UnlistedConfig) -> None:
        super().__init__(config)
        self.trunk = UnlistedModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, **more: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.trunk(input_ids, **more).last_hidden_state))


AutoConfig.register("unlisted", UnlistedConfig)
AutoModelForCausalLM.register(UnlistedConfig, UnlistedForCausalLM)
