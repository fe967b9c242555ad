"""Perplexity, for a mean loss: exp of the nats a token, or of those of as many tokens as make up a word or a byte."""

import math

from dass.errors import NumericalError


def perplexity(loss: float) -> float:
    """exp(loss), for a mean loss in nats.

    Raises:
        NumericalError: the loss is so large that its exponential is not a number a float can hold.
    """
    try:
        return math.exp(loss)
    except OverflowError:
        raise NumericalError(
            f"The mean loss is {loss:g} nats a token: its perplexity is too large to write down."
        ) from None


def perplexity_of(loss: float, tokens: int, units: int) -> float | None:
    """Perplexity a word or a byte: exp of the total loss divided by how many of them the tokens make up.

    Args:
        loss: mean loss in nats a token.
        tokens: N.
        units: words or bytes of those tokens.

    Returns:
        None where there are none, or where it is too large to write down (a text without spaces is one word).
    """
    try:
        return math.exp(loss * tokens / units)
    except (OverflowError, ZeroDivisionError):
        return None
