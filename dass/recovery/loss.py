"""How far the student's next-token distribution lies from the teacher's: KL(teacher ‖ student) in nats, times T².

Times T², because a temperature T makes the gradients of softened logits smaller by that (arXiv 1503.02531).
"""

import torch
from torch import Tensor


def divergence_sum(teacher_nV: Tensor, student_nV: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the tokens of the divergence on the full vocabulary, from logits (n, V). Float32, a scalar."""
    wanted_nV = (teacher_nV.float() / temperature).log_softmax(-1)
    found_nV = (student_nV.float() / temperature).log_softmax(-1)
    total: Tensor = torch.linalg.vecdot(wanted_nV.exp(), wanted_nV - found_nV).sum() * temperature**2
    return total


def top_log_probabilities(teacher_nV: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k most likely tokens: log-probabilities (n, k), float32, and ids (n, k), int32."""
    wanted_nV = (teacher_nV.float() / temperature).log_softmax(-1)
    values_nK, ids_nK = wanted_nV.topk(min(k, wanted_nV.shape[1]), dim=-1)
    return values_nK, ids_nK.int()


def top_divergence_sum(wanted_nK: Tensor, ids_nK: Tensor, student_nV: Tensor, temperature: float = 1.0) -> Tensor:
    """The same where only the teacher's most likely tokens are known; all others count as one token, the tail.

    So nothing is thrown away or renormalised, and the result is at most that on the full vocabulary.

    Args:
        wanted_nK, ids_nK: as `top_log_probabilities` gives.
        student_nV: logits.
        temperature: the one that they were made with.
    """
    found_nV = (student_nV.float() / temperature).log_softmax(-1)
    found_nK = found_nV.gather(1, ids_nK.long())
    told: Tensor = torch.linalg.vecdot(wanted_nK.exp(), wanted_nK - found_nK)
    wanted_tail_n, found_tail_n = _tail(wanted_nK), _tail(found_nK)
    return (told + wanted_tail_n * (wanted_tail_n.log() - found_tail_n.log())).sum() * temperature**2


def _tail(log_probabilities_nK: Tensor) -> Tensor:
    """What is left of 1, and never less than what float32 can tell from 0 there."""
    return (1.0 - log_probabilities_nK.exp().sum(-1)).clamp_min(torch.finfo(torch.float32).eps)


def relative_error(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """Mean over the layers of ‖found − wanted‖² / ‖wanted‖². Float32, a scalar."""
    errors = [
        (one.float() - other.float()).square().mean() / other.float().square().mean().clamp_min(1e-12)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(errors).mean()
