"""What engine.device and engine.dtype mean here."""

import logging

import pytest
import torch

from dass.errors import InputError
from tasks.workspace import devices
from tasks.workspace.devices import choose_device, choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def lacks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_fast_on_this_cpu", lambda asked: asked != dtype)


def test_a_named_type_is_taken_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(torch.bfloat16, monkeypatch)
    assert choose_dtype("bfloat16", torch.float32, CPU) == torch.bfloat16
    assert choose_dtype("float32", torch.bfloat16, CUDA) == torch.float32


def test_auto_is_the_checkpoints_type_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacks(torch.float16, monkeypatch)
    with caplog.at_level(logging.INFO, "dass"):
        assert choose_dtype("auto", torch.bfloat16, CPU) == torch.bfloat16
        assert choose_dtype("auto", torch.float32, CPU) == torch.float32
        assert choose_dtype("auto", torch.float16, CUDA) == torch.float16
    assert not caplog.records


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_auto_on_a_processor_without_them_is_float32_and_told(
    stored: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacks(stored, monkeypatch)
    with caplog.at_level(logging.INFO, "dass"):
        assert choose_dtype("auto", stored, CPU) == torch.float32
    assert f"no instructions for {str(stored).removeprefix('torch.')}" in caplog.text


def test_float32_is_fast_everywhere_and_the_processor_is_asked_about_the_others() -> None:
    assert devices._is_fast_on_this_cpu(torch.float32)
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("DEFAULT", "AVX2"):
        assert not devices._is_fast_on_this_cpu(torch.bfloat16)
    elif capability == "AVX512":
        assert devices._is_fast_on_this_cpu(torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"'cuda:1', and torch sees 0 CUDA devices"):
        choose_device("cuda:1")
