"""What the host waits for: on a CUDA device each such call stops the next kernels from being queued.

Without a card the operators that wait are counted as they are dispatched; with one CUDA itself says where it waited.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dass.engine.layerwise import Buffering
from dass.engine.pruner import LayerwisePruner
from dass.method import mask, selection_on_device
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.plan import plan
from dass.model.decoder import Decoder
from tests.models import tiny_model, tiny_tokens

aten = torch.ops.aten
READ_BY_THE_HOST = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Waits(TorchDispatchMode):
    """Counts what the host would wait for, were the tensors on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in INDEXED and any(isinstance(at, Tensor) and at.dtype is torch.bool for at in args[1])
        self.count += func in READ_BY_THE_HOST or by_mask
        return func(*args, **(kwargs or {}))


def waits_of_a_layer(batches: int, family: str, **options: Any) -> int:
    with torch.no_grad():
        model: Any = tiny_model(family)
        pruner = LayerwisePruner(Decoder(model), tiny_tokens(batches), plan(**options), buffering=Buffering(16))
        with Waits() as seen:
            pruner.prune_layer(0)
    return seen.count


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask, "selection", selection_on_device)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"method": "sparsegpt"}], ids=str)
def test_a_layer_waits_no_more_often_for_more_batches(family: str, options: dict[str, Any]) -> None:
    assert waits_of_a_layer(3, family, **options) == waits_of_a_layer(12, family, **options) <= 30


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_a_mask_waits_once_for_whether_a_score_is_nan(axis: int | None, pattern: str) -> None:
    with Waits() as seen:
        keep_mask(torch.rand(64, 32), parse_pattern(pattern), axis)
    assert seen.count == 1


def test_the_count_sees_what_it_is_to_see() -> None:
    numbers = torch.rand(8)
    with Waits() as seen:
        bool(numbers.sum() > 0), numbers[numbers > 0.5], numbers.max().item()
    assert seen.count == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_waits_no_more_often_for_more_batches() -> None:
    def waited(batches: int) -> int:
        model: Any = tiny_model()
        model.to("cuda")
        pruner = LayerwisePruner(Decoder(model), tiny_tokens(batches), plan(), buffering=Buffering(16))
        pruner.prune_layer(0)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                pruner.prune_layer(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(each.message) for each in told)

    assert waited(3) == waited(12)
