"""Products by the faster library: the same numbers but for rounding, and only where they are float32 on a CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dass.measures import products
from dass.measures.losses import token_losses
from dass.measures.products import fast_products
from tests.models import tiny_model, tiny_tokens


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    products._mkl_is_slow.cache_clear()
    yield
    products._mkl_is_slow.cache_clear()


def on_a_cpu_of(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"vendor_id : {maker}\n")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the inputs that the faster library was given."""
    given: list[torch.Size] = []
    real = products._linear

    def noted(input_NK: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        given.append(input_NK.shape)
        return real(input_NK, *rest)

    monkeypatch.setattr(products, "_linear", noted)
    return given


needs_both = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="torch has one library"
)


@needs_both
def test_losses_by_either_library_differ_by_rounding_only(
    monkeypatch: pytest.MonkeyPatch, calls: list[torch.Size]
) -> None:
    model, windows_WL = tiny_model(), tiny_tokens()
    on_a_cpu_of("GenuineIntel", monkeypatch)
    by_mkl = token_losses(model, windows_WL)
    assert calls == []
    products._mkl_is_slow.cache_clear()
    on_a_cpu_of("AuthenticAMD", monkeypatch)
    by_onednn = token_losses(model, windows_WL)
    assert len(calls) > 7  # the layers' and the head's
    torch.testing.assert_close(by_onednn, by_mkl, rtol=1e-5, atol=1e-5)


@needs_both
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_the_same_numbers_with_and_without_a_bias(
    bias: bool, monkeypatch: pytest.MonkeyPatch, calls: list[torch.Size]
) -> None:
    on_a_cpu_of("AuthenticAMD", monkeypatch)
    layer, input_BNK = nn.Linear(48, 80, bias=bias), torch.randn(2, 5, 48)
    expected = layer(input_BNK)
    with fast_products():
        torch.testing.assert_close(layer(input_BNK), expected)
    assert calls == [input_BNK.shape]


@needs_both
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["another type", "one vector", "a view"])
def test_what_the_library_is_not_asked_for_runs_as_ever(
    kind: str, monkeypatch: pytest.MonkeyPatch, calls: list[torch.Size]
) -> None:
    on_a_cpu_of("AuthenticAMD", monkeypatch)
    layer = nn.Linear(48, 80)
    given = {"another type": torch.randn(5, 48).double(), "one vector": torch.randn(48), "a view": torch.randn(48, 5).T}
    layer.to(given[kind].dtype)
    expected = layer(given[kind])
    with fast_products():
        assert torch.equal(layer(given[kind]), expected)
    assert calls == []
