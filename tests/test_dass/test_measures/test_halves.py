"""Body and head against the whole model, for every family of the tests."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dass.measures.halves import halves
from tests.models import EVERY_FAMILY, tiny_model, tiny_tokens


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.inference_mode()
def test_head_of_body_is_the_model(family: str) -> None:
    model, windows_WL = tiny_model(family), tiny_tokens(samples=2, length=12)
    parts = halves(model, windows_WL[0])
    assert parts is not None
    hidden_WLH = parts.hidden(windows_WL, 0)
    slices = [parts.logits(part) for part in hidden_WLH.flatten(0, 1).split(5)]
    torch.testing.assert_close(torch.cat(slices), model(windows_WL).logits.flatten(0, 1))
    assert "forward" not in parts.body.__dict__


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5}),  # a soft cap
        ("cohere", {"logit_scale": 3.0}),  # a scale
        ("granite", {"logits_scaling": 5.0}),  # a divisor
        ("phi", {}),  # a head with a bias
    ],
)
@torch.inference_mode()
def test_what_a_family_does_behind_its_head_is_done(family: str, changes: dict[str, Any]) -> None:
    model, windows_WL = tiny_model(family, **changes), tiny_tokens(samples=2, length=12)
    if family == "phi":
        model.get_output_embeddings().bias.normal_()
    parts = halves(model, windows_WL[0])
    assert parts is not None
    torch.testing.assert_close(parts.logits(parts.hidden(windows_WL, 0)[1]), model(windows_WL).logits[1])


@torch.inference_mode()
def test_a_head_that_looks_at_other_tokens_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    own = model.forward

    def forward(**inputs: object) -> object:
        return SimpleNamespace(logits=own(**inputs).logits.cumsum(1))

    monkeypatch.setattr(model, "forward", forward)
    assert halves(model, tiny_tokens()[0]) is None


@torch.inference_mode()
def test_a_model_without_a_body_has_no_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(type(model), "base_model_prefix", "elsewhere")
    assert halves(model, tiny_tokens()[0]) is None
