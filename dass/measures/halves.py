"""A causal LM in two halves: the body, from tokens to hidden states, and the head, from hidden states to logits.

Only the head's result is as wide as the vocabulary (Gemma: V = 262144), so the body takes whole batches and the head
takes them in slices. W windows, L tokens of a window, N tokens of a slice, H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

_PROBED = 16  # tokens on which the halves are compared with the whole
_SOFTMAX_AT_ONCE = 2**20


class Halves:
    """Body and head of a model.

    The head is the model's own `forward`, whose body answers with hidden states that were computed before. So whatever
    a family does between them (a bias, a scale, a soft cap) is done by its own code.

    Attributes:
        model: the causal LM. Not changed, but for the time of a call to `logits`.
        body: the part that ends with hidden states.
        answer: type of the body's output, all of whose fields may be left out.
    """

    def __init__(self, model: "PreTrainedModel", body: nn.Module, answer: type["ModelOutput"]) -> None:
        self.model = model
        self.body = body
        self.answer = answer

    @property
    def device(self) -> torch.device:
        """Where they compute."""
        return self.model.device

    def run(self, input_ids_WL: Tensor, **how: Any) -> Any:
        """The body's own output; its `last_hidden_state` has the shape (W, L, H)."""
        return self.body(input_ids=input_ids_WL, **how)

    def hidden(self, input_ids_WL: Tensor, start: int) -> Tensor:
        """Hidden states as the head takes them, (W, L, H), in the model's type.

        Args:
            input_ids_WL: some of the windows.
            start: how many windows come before them; here it makes no difference.
        """
        states_WLH: Tensor = self.run(input_ids_WL, use_cache=False).last_hidden_state
        return states_WLH

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of any tokens' hidden states, in the type that the model gives them."""
        placeholders_1N = torch.zeros((1, len(hidden_NH)), dtype=torch.long, device=hidden_NH.device)
        with _answering(self.body, self.answer(last_hidden_state=hidden_NH[None])):
            logits_1NV: Tensor = self.model(input_ids=placeholders_1N, use_cache=False).logits
        return logits_1NV[0]

    def log_probabilities(self, hidden_NH: Tensor) -> Tensor:
        """Log-probabilities (N, V) of any tokens' hidden states, in float32."""
        return log_softmax_(self.logits(hidden_NH).float())


def log_softmax_(logits_NV: Tensor) -> Tensor:
    """Logits to log-probabilities, in place: a second tensor of this size is slow to get."""
    for some_nV in logits_NV.split(rows_at_once(logits_NV)):
        some_nV.copy_(some_nV.log_softmax(-1))
    return logits_NV


def cross_entropies(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross entropy of each token (N) in nats, float32, from logits of any float type.

    They are widened some rows at a time, which stay in the cache: as a whole they would take twice their memory again.
    """
    rows = rows_at_once(logits_NV)
    pairs = zip(logits_NV.split(rows), targets_N.split(rows), strict=True)
    found = [nn.functional.cross_entropy(some_nV.float(), some_n, reduction="none") for some_nV, some_n in pairs]
    return torch.cat(found)


def rows_at_once(logits_NV: Tensor) -> int:
    """How many tokens' logits stay in a CPU's cache from one step of their softmax to the next; elsewhere all."""
    return max(1, _SOFTMAX_AT_ONCE // logits_NV.shape[1] if logits_NV.device.type == "cpu" else len(logits_NV))


def halves(model: "PreTrainedModel", input_ids_L: Tensor) -> Halves | None:
    """The two halves of a model, or None where they cannot be told apart.

    They are compared with the whole model on the first tokens: its logits must come out, slice by slice.

    Args:
        model: a causal LM in eval mode.
        input_ids_L: some text, at least 1 token, on the model's device.
    """
    body = model.base_model
    if body is model or not isinstance(body, nn.Module):
        return None
    probe_1L = input_ids_L[None, :_PROBED]
    expected_LV = model(input_ids=probe_1L, use_cache=False).logits[0]
    try:
        output = body(input_ids=probe_1L, use_cache=False)
        parts = Halves(model, body, type(output))
        # In two slices, so that a head which looks at other tokens shows.
        slices = [parts.logits(part) for part in output.last_hidden_state[0].tensor_split(2) if len(part)]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    found_LV = torch.cat(slices)
    if found_LV.shape != expected_LV.shape:
        return None
    near = 16 * torch.finfo(expected_LV.dtype).eps * float(expected_LV.abs().nan_to_num(0.0, 0.0).max())
    return parts if torch.allclose(found_LV, expected_LV, rtol=0.0, atol=near, equal_nan=True) else None


@contextmanager
def _answering(body: nn.Module, answer: "ModelOutput") -> Iterator[None]:
    """For a while the body computes nothing: whatever it is asked, it gives this answer."""
    before = body.__dict__.get("forward")
    body.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before
