"""The figures of one text: perplexities, their ratio with an interval, and how far the predictions moved."""

import math
from typing import Any

from torch import Tensor

from dass.errors import NumericalError
from dass.measures.divergence import Divergence, frequency_bands, position_bands
from dass.measures.losses import mean
from dass.measures.perplexity import perplexity, perplexity_of
from tasks.evaluation.bootstrap import LEVEL, RESAMPLES, mean_interval

SEED = 1234


def scores(losses_WL: Tensor, text: dict[str, Any]) -> dict[str, Any]:
    """What token losses come to: {"perplexity", "mean_loss", "word_perplexity", "byte_perplexity"}.

    Args:
        losses_WL: of every predicted token, in nats.
        text: the text's record, with "tokens", "words" and "bytes".

    Raises:
        NumericalError: the perplexity is too large to write down.
    """
    loss = mean(losses_WL)
    return {"perplexity": perplexity(loss), "mean_loss": loss, **per_unit(loss, text)}


def per_unit(loss: float, text: dict[str, Any]) -> dict[str, float | None]:
    """Perplexity a word and a byte of the predicted tokens' text; None where it is too large to write down."""
    return {
        "word_perplexity": perplexity_of(loss, text["tokens"], text["words"]),
        "byte_perplexity": perplexity_of(loss, text["tokens"], text["bytes"]),
    }


def ratio_interval(dense_WL: Tensor, pruned_WL: Tensor) -> dict[str, Any] | None:
    """Confidence interval of the perplexity ratio, from the same windows drawn again and again for both models.

    Windows are drawn whole, because the tokens of one have much in common. None for a single window.
    """
    if len(dense_WL) < 2:
        return None
    low, high = mean_interval((pruned_WL.double().mean(1) - dense_WL.double().mean(1)).numpy(), SEED)
    return {
        "ratio": [math.exp(low), math.exp(high)],
        "level": LEVEL,
        "method": "paired block bootstrap over windows",
        "resamples": RESAMPLES,
    }


def divergence_record(
    found: Divergence | None, windows_WL: Tensor, dense_WL: Tensor, pruned_WL: Tensor
) -> dict[str, Any] | None:
    """How far the pruned model's predictions lie from the dense model's, as a whole and by bands.

    Args:
        found: of the first tokens, whole windows; None where the models' hidden states could not be had.
        windows_WL: the text.
        dense_WL: losses of the dense model, (W, L − 1).
        pruned_WL: losses of the pruned model.

    Raises:
        NumericalError: it is NaN or infinite.
    """
    if found is None:
        return None
    if not math.isfinite(found.kl):
        raise NumericalError(f"The divergence from the dense model is {found.kl}: a logit is infinite.")
    tokens = len(found)
    targets_N, difference_N = windows_WL[:, 1:].flatten()[:tokens], (pruned_WL - dense_WL).flatten()[:tokens]

    def band(least: int, most: int | None, chosen_N: Tensor) -> dict[str, Any]:
        ratio = math.exp(mean(difference_N[chosen_N]))
        return {"from": least, "to": most, **_means(found.where(chosen_N)), "ratio": ratio}

    return {
        **_means(found),
        "by_position": [band(*each) for each in position_bands(tokens, dense_WL.shape[1])],
        "by_frequency": [band(*each) for each in frequency_bands(targets_N, windows_WL.flatten())],
    }


def _means(found: Divergence) -> dict[str, Any]:
    return {
        "tokens": len(found),
        "kl": found.kl,
        "top1_agreement": found.top1_agreement,
        "top5_overlap": found.top5_overlap,
    }
