"""Windows of equal length cut out of token streams: drawn at random, or one after another.

Axes: D documents, N tokens of one stream, W windows, L tokens of a window. With a BOS token a window is that token
followed by L − 1 tokens of text.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from dass.errors import InputError


def random_windows(
    tokens_of: Callable[[int], Tensor],
    documents: int,
    sequence_length: int,
    samples: int,
    seed: int,
    bos: int | None = None,
) -> Tensor:
    """Draw windows from random documents at random offsets, no two of them overlapping.

    Documents are visited in a random order, those shorter than a window passed over, until every window has a
    document of its own. Only when there are too few documents for that do they give a second window, a third and
    so on, in turn. One long text is the case D = 1. A document that is not needed is never tokenised.

    Args:
        tokens_of: the tokens of document i, LongTensor (N,). Called at most once for each document.
        documents: D.
        sequence_length: L, at least 2 with a BOS token.
        samples: W.
        seed: the same seed and texts give the same windows.
        bos: token id put at the start of every window.

    Returns:
        LongTensor (W, L).

    Raises:
        InputError: the text holds fewer than `samples` windows. The message says how many it can give.
    """
    width = _width(sequence_length, bos)
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    longest = 0
    for document in torch.randperm(documents, generator=generator).tolist():
        tokens_N = tokens_of(document)
        longest = max(longest, len(tokens_N))
        if len(tokens_N) >= width:
            drawn.append(tokens_N)
        if len(drawn) == samples:
            break
    capacities = [len(tokens_N) // width for tokens_N in drawn]
    if sum(capacities) < samples:
        raise InputError(_too_little(sum(capacities), sequence_length, samples, longest))
    counts = _in_turn(capacities, samples)
    windows_Wl = torch.cat(
        [_inside(tokens_N, width, count, generator) for tokens_N, count in zip(drawn, counts, strict=True)]
    )
    return _with_bos(windows_Wl, bos)


def consecutive_windows(
    tokens_N: Tensor, sequence_length: int, samples: int | None = None, bos: int | None = None
) -> Tensor:
    """Cut a token stream into windows that follow one another; a rest shorter than a window is left out.

    Args:
        tokens_N: LongTensor (N,).
        sequence_length: L, at least 2 with a BOS token.
        samples: at most that many windows, from the start; None takes all.
        bos: token id put at the start of every window.

    Returns:
        LongTensor (W, L).

    Raises:
        InputError: the text is shorter than one window.
    """
    width = _width(sequence_length, bos)
    whole = len(tokens_N) // width
    if whole == 0:
        raise InputError(_too_little(0, sequence_length, samples or 1, len(tokens_N)))
    count = whole if samples is None else min(samples, whole)
    return _with_bos(tokens_N[: count * width].view(count, width), bos)


def windows_each(samples: int, shares: Sequence[Fraction]) -> list[int]:
    """How many of `samples` windows each of several texts gives, by largest remainder; the first of equal ones first.

    Args:
        samples: all of them.
        shares: adding up to 1.
    """
    exact = [samples * share for share in shares]
    counts = [math.floor(each) for each in exact]
    order = sorted(range(len(shares)), key=lambda which: counts[which] - exact[which])
    for which in order[: samples - sum(counts)]:
        counts[which] += 1
    return counts


def _width(sequence_length: int, bos: int | None) -> int:
    width = sequence_length if bos is None else sequence_length - 1
    if width < 1:
        raise InputError(f"sequence_length is {sequence_length}: expected at least {2 if bos is not None else 1}.")
    return width


def _in_turn(capacities: list[int], samples: int) -> list[int]:
    counts = [0] * len(capacities)
    while samples:
        for document, capacity in enumerate(capacities):
            if samples and counts[document] < capacity:
                counts[document] += 1
                samples -= 1
    return counts


def _inside(tokens_N: Tensor, width: int, count: int, generator: torch.Generator) -> Tensor:
    # The tokens left over are dealt out at random before, between and behind the windows, so none overlap.
    left_over = len(tokens_N) - count * width
    gaps_W = torch.randint(left_over + 1, (count,), generator=generator).sort().values
    starts_W = gaps_W + width * torch.arange(count)
    return tokens_N[starts_W[:, None] + torch.arange(width)]


def _with_bos(windows_Wl: Tensor, bos: int | None) -> Tensor:
    if bos is None:
        return windows_Wl.clone()
    return torch.cat([torch.full((len(windows_Wl), 1), bos), windows_Wl], dim=1)


def _too_little(capacity: int, sequence_length: int, samples: int, longest: int) -> str:
    if capacity == 0:
        return (
            f"The text gives 0 windows of {sequence_length} tokens, {samples} were asked for: its longest document has "
            f"{longest} tokens. Use shorter windows or a longer text."
        )
    return (
        f"The text gives {capacity} windows of {sequence_length} tokens, {samples} were asked for. "
        f"Ask for at most {capacity}, use shorter windows or a longer text."
    )
