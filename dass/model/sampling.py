"""Text that a model makes itself, window by window: each token drawn from what the model expects next.

W windows, B windows computed at once, L tokens of a window, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dass.errors import InputError, NumericalError
from dass.model.memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = 32
"""Windows computed together. A fixed number: products of another height round differently."""


@torch.inference_mode()
def sampled_windows(
    model: "PreTrainedModel",
    start: int,
    samples: int,
    sequence_length: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    on_tokens: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Draw windows from a model, which keeps keys and values of what was drawn. Behind an end the next text begins.

    One random number a token, all drawn on the host before anything is computed. So windows depend on the seed, the
    model and how logits round: the same device, thread count and libraries give the same tokens. Another kind of device
    may part at a token whose number falls between two roundings.

    Args:
        model: a causal LM in eval mode. Nothing that generation_config says is heard.
        start: the token every window follows, not part of it.
        samples: W.
        sequence_length: L.
        seed: of the random numbers.
        temperature: what logits are divided by; below 1 the likely gets likelier.
        top_k: only the so many likeliest tokens can be drawn; None: all.
        on_tokens: told how many more tokens are drawn.

    Returns:
        LongTensor (W, L), on the host.

    Raises:
        InputError: a model that keeps no keys and values, or too little memory for them.
        NumericalError: logits are NaN or infinite.
    """
    chance_WL = torch.rand(
        (samples, sequence_length), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    try:
        return torch.cat(
            [_batch(model, start, chance_BL, temperature, top_k, on_tokens) for chance_BL in chance_WL.split(AT_ONCE)]
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise InputError(
        f"keys and values of {min(samples, AT_ONCE)} windows of {sequence_length} tokens do not fit into memory beside "
        "the model. Use a shorter calibration.sequence_length, or calibration.source: text."
    )


def _batch(
    model: "PreTrainedModel",
    start: int,
    chance_BL: Tensor,
    temperature: float,
    top_k: int | None,
    on_tokens: Callable[[int], object],
) -> Tensor:
    cache: Any = None
    ids_B1 = torch.full((len(chance_BL), 1), start, device=model.device)
    columns = []
    for chance_B in chance_BL.unbind(1):
        output = model(input_ids=ids_B1, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise InputError(f"{type(model).__name__} keeps no keys and values: it cannot write text token by token.")
        columns.append(drawn(output.logits[:, -1], chance_B, temperature, top_k))
        ids_B1 = columns[-1][:, None].to(model.device)
        on_tokens(len(ids_B1))
    return torch.stack(columns, dim=1)


def drawn(logits_BV: Tensor, chance_B: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The token of each row whose share of the summed-up probabilities holds its random number: LongTensor (B,).

    Args:
        logits_BV: any float dtype, on any device; the sums are float64, on the host, so that their order is fixed.
        chance_B: from 0 to below 1, float64, on the host.
        temperature: what logits are divided by.
        top_k: as `sampled_windows`; among equal logits at the border the order is torch's.

    Raises:
        NumericalError: a row holds NaN, or nothing but infinities.
    """
    scaled_BV = logits_BV.double().cpu() / temperature
    if top_k is not None and top_k < scaled_BV.shape[1]:
        best, at = scaled_BV.topk(top_k, dim=1)
        scaled_BV = torch.full_like(scaled_BV, -torch.inf).scatter_(1, at, best)
    summed_BV = scaled_BV.softmax(dim=1).cumsum(dim=1)
    if not summed_BV.isfinite().all():
        raise NumericalError("the model's logits are NaN or infinite. Compute in a wider type (engine.dtype: float32).")
    total_B1 = summed_BV[:, -1:]
    # A number just below 1 may round up to the total: the last token that can come is then meant.
    below = torch.minimum(chance_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(summed_BV, below, right=True)[:, 0]
