"""What a model writes when it always takes the likeliest token, and how to tell when it repeats itself.

P prompts, L tokens of a prompt, all prompts equally long, so that none is padded.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dass.measures.halves import halves

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def greedy(
    model: "PreTrainedModel", prompts_PL: Tensor, new_tokens: int, ends: Collection[int] = ()
) -> list[list[int]]:
    """Continue every prompt with the likeliest token, again and again. Nothing that generation_config says is heard.

    Args:
        model: a causal LM in eval mode.
        prompts_PL: token ids, LongTensor (P, L ≥ 1).
        new_tokens: at most that many.
        ends: ids that end a text; they and what would follow are left out.

    Returns:
        The P continuations.
    """
    prompts_PL = prompts_PL.to(model.device)
    parts = halves(model, prompts_PL[0])
    cache: Any = None
    ids_PL, columns, ended_P = prompts_PL, [], torch.zeros(len(prompts_PL), dtype=torch.bool)
    for _ in range(new_tokens):
        if parts is None:
            output = model(input_ids=ids_PL, past_key_values=cache, use_cache=True)
            logits_PV = output.logits[:, -1]
        else:
            output = parts.run(ids_PL, past_key_values=cache, use_cache=True)
            logits_PV = parts.logits(output.last_hidden_state[:, -1])
        cache = output.past_key_values
        ids_PL = logits_PV.argmax(1, keepdim=True)
        columns.append(ids_PL[:, 0].cpu())
        ended_P |= torch.isin(columns[-1], torch.tensor(sorted(ends), dtype=torch.long))
        if ended_P.all():
            break
    return [_until(row, ends) for row in torch.stack(columns, 1).tolist()]


def distinct_3(tokens: Sequence[int]) -> float | None:
    """Share of different ones among all runs of three tokens: 1 repeats nothing, near 0 goes round in circles.

    None for fewer than three tokens.
    """
    runs = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(runs)) / len(runs) if runs else None


def diverges_at(first: Sequence[int], second: Sequence[int]) -> int | None:
    """How many tokens two texts have in common at their start; None when they are the same."""
    if list(first) == list(second):
        return None
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _until(row: list[int], ends: Collection[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
