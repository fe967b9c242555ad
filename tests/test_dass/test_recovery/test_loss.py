"""The divergence of the student from its teacher, on all tokens and on the most likely ones."""

import pytest
import torch
from torch.nn import functional

from dass.recovery.loss import divergence_sum, relative_error, top_divergence_sum, top_log_probabilities


def logits(seed: int, tokens: int = 6, vocabulary: int = 40) -> torch.Tensor:
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_divergence_is_kl_of_teacher_from_student_times_the_squared_temperature(temperature: float) -> None:
    teacher, student = logits(0), logits(1)
    expected = functional.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    torch.testing.assert_close(divergence_sum(teacher, student, temperature), expected * temperature**2)
    assert divergence_sum(teacher, teacher, temperature) == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_its_gradient_is_that_of_torchs_own(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dass.recovery.loss.rows_at_once", lambda _: 4)  # two blocks, the second a shorter one
    teacher, student, same = logits(0), logits(1).requires_grad_(), logits(1).double().requires_grad_()
    (divergence_sum(teacher, student, temperature) * 0.3).backward()
    wanted = (teacher.double() / temperature).log_softmax(-1)
    found = (same / temperature).log_softmax(-1)
    (functional.kl_div(found, wanted, reduction="sum", log_target=True) * temperature**2 * 0.3).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad.double(), same.grad, rtol=1e-5, atol=1e-6)


def test_the_tail_counts_as_one_token() -> None:
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    student = torch.zeros(1, 4)
    wanted, ids = top_log_probabilities(teacher, 1)
    assert ids.tolist() == [[0]]
    expected = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
    torch.testing.assert_close(top_divergence_sum(wanted, ids, student), expected)


def test_more_of_the_most_likely_tokens_come_nearer_to_the_whole_divergence() -> None:
    teacher, student = logits(0), logits(1)
    whole = float(divergence_sum(teacher, student))
    found = [float(top_divergence_sum(*top_log_probabilities(teacher, k), student)) for k in (1, 4, 16, 39, 40)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(whole, rel=1e-4)
    assert found[0] > 0.0


def test_gradients_of_the_most_likely_tokens_are_finite_where_they_are_all_there_is() -> None:
    teacher = torch.tensor([[100.0, 0.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    top_divergence_sum(*top_log_probabilities(teacher, 2), student).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_layers_error_is_relative() -> None:
    wanted = (torch.full((2, 3), 10.0), torch.ones(2, 3))
    found = (torch.full((2, 3), 11.0), torch.ones(2, 3) * 0.5)
    torch.testing.assert_close(relative_error(found, wanted), torch.tensor((0.01 + 0.25) / 2))
