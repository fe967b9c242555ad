"""How far the student's next-token distribution lies from the teacher's: KL(teacher ‖ student) in nats, times T².

Times T², because a temperature T makes the gradients of softened logits smaller by that (arXiv 1503.02531).
"""

from typing import Any

import torch
from torch import Tensor

from dass.measures.halves import rows_at_once


def divergence_sum(teacher_nV: Tensor, student_nV: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the tokens of the divergence on the full vocabulary, from logits (n, V). Float32, a scalar.

    Its gradient is the student's, who may be asked for one.
    """
    total: Tensor = _Divergence.apply(teacher_nV, student_nV, temperature)
    return total


class _Divergence(torch.autograd.Function):
    """Value and gradient (the student's probabilities − the teacher's, times T) in one pass, a few tokens at a time."""

    @staticmethod
    def forward(ctx: Any, teacher_nV: Tensor, student_nV: Tensor, temperature: float) -> Tensor:
        rows, is_wanted = rows_at_once(student_nV), ctx.needs_input_grad[1]
        gradient_nV = torch.empty_like(student_nV) if is_wanted else student_nV
        total = torch.zeros((), dtype=torch.float32, device=student_nV.device)
        for teacher_bV, student_bV, gradient_bV in zip(
            teacher_nV.split(rows), student_nV.split(rows), gradient_nV.split(rows), strict=True
        ):
            wanted_bV = _log_probabilities(teacher_bV, temperature)
            found_bV = _log_probabilities(student_bV, temperature)
            probability_bV = wanted_bV.exp()
            total += torch.linalg.vecdot(probability_bV, wanted_bV.sub_(found_bV)).sum()
            if is_wanted:
                torch.mul(found_bV.exp_().sub_(probability_bV), temperature, out=gradient_bV)
        if is_wanted:
            ctx.save_for_backward(gradient_nV)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (gradient_nV,) = ctx.saved_tensors
        return None, gradient_nV * gradients[0], None


def _log_probabilities(logits_nV: Tensor, temperature: float) -> Tensor:
    logits_nV = logits_nV.float()
    return (logits_nV if temperature == 1.0 else logits_nV / temperature).log_softmax(-1)


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
