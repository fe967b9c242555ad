"""How far the pruned model's predictions lie from the dense model's, token by token.

N tokens scored, n tokens of a slice, V vocabulary. The divergence is KL(dense ‖ pruned) in nats: what is lost, on
average over what the dense model would say next, by taking the pruned model's probabilities for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dass.errors import InputError
from dass.measures.halves import rows_at_once
from dass.measures.losses import Slice

TOP = 5
_BLOCK = 64

POSITION_BANDS = 8
FREQUENCIES = (1, 2, 10, 100, 1000)
"""Where a band of occurrences starts."""


@dataclass(frozen=True)
class Divergence:
    """Of each token.

    Attributes:
        kl_N: KL(dense ‖ pruned) in nats, float32.
        top1_N: whether both models hold the same token most likely, bool.
        shared_N: how many of the TOP most likely tokens both have, uint8.
    """

    kl_N: Tensor
    top1_N: Tensor
    shared_N: Tensor

    def __len__(self) -> int:
        return len(self.kl_N)

    def where(self, chosen_N: Tensor) -> "Divergence":
        """That of the tokens that a mask chooses."""
        return Divergence(self.kl_N[chosen_N], self.top1_N[chosen_N], self.shared_N[chosen_N])

    @property
    def kl(self) -> float:
        """Mean over the tokens, summed in float64."""
        return self.kl_N.mean(dtype=torch.float64).item()

    @property
    def top1_agreement(self) -> float:
        """Share of tokens."""
        return self.top1_N.double().mean().item()

    @property
    def top5_overlap(self) -> float:
        """Mean share of the TOP most likely."""
        return self.shared_N.double().mean().item() / TOP


def divergence(dense_nV: Tensor, pruned_nV: Tensor) -> Divergence:
    """Compare log-probabilities, float32 (n, V) each. Equal ones give exactly 0, True and TOP.

    `dense_nV` is used as working memory: it holds probabilities afterwards.
    """
    dense_top_nk, pruned_top_nk = top(dense_nV), top(pruned_nV)
    kl_n = token_kl(dense_nV, pruned_nV)
    shared_n = (dense_top_nk[:, :, None] == pruned_top_nk[:, None, :]).sum((1, 2))
    missing = TOP - dense_top_nk.shape[1]  # of a vocabulary with fewer tokens
    return Divergence(kl_n.cpu(), (dense_top_nk[:, 0] == pruned_top_nk[:, 0]).cpu(), (shared_n + missing).byte().cpu())


def token_kl(dense_nV: Tensor, pruned_nV: Tensor) -> Tensor:
    """KL(dense ‖ pruned) of log-probabilities (n, V) in nats, float32 (n,).

    `dense_nV` is used as working memory: it holds probabilities afterwards.
    """
    apart_nV = dense_nV - pruned_nV
    kl_n: Tensor = torch.linalg.vecdot(dense_nV.exp_(), apart_nV)
    return kl_n.clamp_(min=0.0)  # below by rounding only


def top(values_nV: Tensor) -> Tensor:
    """Ids of each row's TOP largest values, LongTensor (n, TOP), largest first."""
    if values_nV.shape[1] // _BLOCK <= TOP:
        return values_nV.topk(min(TOP, values_nV.shape[1]), 1).indices
    candidates = _candidates(values_nV, lambda maxima_nB: maxima_nB.topk(TOP, 1).indices)
    return candidates.gather(1, values_nV.gather(1, candidates).topk(TOP, 1).indices)


def largest(values_nV: Tensor) -> Tensor:
    """Id of each row's largest value, LongTensor (n,); the first of equal ones, as `argmax` has it in ten times its
    time."""
    if values_nV.shape[1] < _BLOCK:
        return values_nV.argmax(1)
    candidates = _candidates(values_nV, lambda maxima_nB: maxima_nB.argmax(1, keepdim=True))
    return candidates.gather(1, values_nV.gather(1, candidates).argmax(1, keepdim=True))[:, 0]


def _candidates(values_nV: Tensor, best_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Ids among which each row's largest values are: those of the blocks with the largest maxima, so that whole rows
    are read once and not sorted, and those behind the last block."""
    vocabulary, device = values_nV.shape[1], values_nV.device
    blocks = vocabulary // _BLOCK
    best_nk = best_of(values_nV[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(2))
    in_blocks = (best_nk[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=device)).flatten(1)
    rest = torch.arange(blocks * _BLOCK, vocabulary, device=device).expand(len(values_nV), -1)
    return torch.cat([in_blocks, rest], 1)


class Comparison:
    """Takes the pruned model's slices, and compares each with what the dense model said of the same tokens.

    The dense model itself is not there: its head is the pruned model's too, as only MLPs are pruned, and its hidden
    states were kept. So one model is in memory, and logits of two slices.

    Args:
        hidden_of: gives the dense model's hidden states (n, H) of tokens start to stop.
        tokens: how many tokens' were kept, from the first; those behind are not compared.
    """

    def __init__(self, hidden_of: Callable[[int, int], Tensor], tokens: int) -> None:
        self._hidden_of = hidden_of
        self._tokens = tokens
        self._found: list[Divergence] = []

    def __call__(self, piece: Slice) -> None:
        """Compare one slice; they come in order."""
        stop = min(piece.start + len(piece.losses_n), self._tokens)
        if piece.parts is None or piece.start >= stop:
            return
        hidden_nH = self._hidden_of(piece.start, stop).to(piece.losses_n.device)
        dense_nV, pruned_nV = piece.parts.logits(hidden_nH), piece.logits_nV[: stop - piece.start]
        rows = rows_at_once(dense_nV)
        for each in zip(dense_nV.split(rows), pruned_nV.split(rows), strict=True):
            self._found.append(divergence(*(some_nV.float().log_softmax(-1) for some_nV in each)))

    @property
    def result(self) -> Divergence | None:
        """Of all tokens that were compared; None: of none."""
        if not self._found:
            return None
        kl, top1, shared = zip(*((each.kl_N, each.top1_N, each.shared_N) for each in self._found), strict=True)
        return Divergence(torch.cat(kl), torch.cat(top1), torch.cat(shared))


def position_bands(tokens: int, scored: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cut the positions of a window into bands of nearly equal width.

    Args:
        tokens: N, whole windows.
        scored: predicted tokens of a window, L − 1.

    Yields:
        First and last position of a band (the window's first token, which is given, has position 0), and which of the
        N tokens are in it.

    Raises:
        InputError: these are not whole windows.
    """
    if tokens % scored:
        raise InputError(f"{tokens} tokens are not whole windows of {scored}.")
    positions_N = torch.arange(1, scored + 1).repeat(tokens // scored)
    bands = min(POSITION_BANDS, scored)
    for before, last in pairwise(scored * band // bands for band in range(bands + 1)):
        yield before + 1, last, (positions_N > before) & (positions_N <= last)


def frequency_bands(targets_N: Tensor, text_M: Tensor) -> Iterator[tuple[int, int | None, Tensor]]:
    """Sort tokens by how often their id occurs in the text; bands without tokens are left out.

    Args:
        targets_N: ids of the tokens that came.
        text_M: ids of the whole text.

    Yields:
        Least and largest number of occurrences of a band (None: no largest), and which of the N tokens are in it.
    """
    occurrences_N = torch.bincount(text_M, minlength=int(targets_N.max()) + 1)[targets_N]
    ends = [*(start - 1 for start in FREQUENCIES[1:]), None]
    for least, most in zip(FREQUENCIES, ends, strict=True):
        chosen_N = occurrences_N >= least
        if most is not None:
            chosen_N &= occurrences_N <= most
        if chosen_N.any():
            yield least, most, chosen_N
