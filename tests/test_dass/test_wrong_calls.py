"""Twelve calls that people make when they meet the Python API: each is told in one line what was expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import dass
from dass.errors import InputError
from tests.models import tiny_model, tiny_text, tiny_tokenizer, tiny_tokens

Call = Callable[[Any, Path], object]
CALLS: dict[str, tuple[Call, str]] = {
    "nothing to calibrate on": (
        lambda model, at: dass.prune(model, pattern="2:4"),
        "nothing is given to calibrate on: expected input_ids, or tokenizer and texts together",
    ),
    "texts without a tokenizer": (
        lambda model, at: dass.prune(model, texts=["some text"]),
        "texts is given to calibrate on: expected input_ids, or tokenizer and texts together",
    ),
    "both tokens and texts": (
        lambda model, at: dass.prune(model, tiny_tokens(), tokenizer=tiny_tokenizer(), texts=tiny_text()),
        "input_ids is given, and tokenizer or texts too: expected one or the other",
    ),
    "text for tokens": (
        lambda model, at: dass.prune(model, tiny_text()),
        "input_ids is a str: expected a LongTensor of shape .samples, length., or a tokenizer's output",
    ),
    "one window without its axis": (
        lambda model, at: dass.prune(model, tiny_tokens()[0]),
        "expected whole numbers of shape .samples, length.",
    ),
    "a padded batch": (
        lambda model, at: dass.prune(model, {"input_ids": tiny_tokens(), "attention_mask": tiny_tokens() * 0}),
        "input_ids has 64 tokens of padding .*Cut windows of one length, as dass.calibration_windows does",
    ),
    "a folder for a model": (
        lambda model, at: dass.prune(at, tiny_tokens()),  # type: ignore[arg-type]
        "model is a PosixPath: expected a transformers model in memory. For a checkpoint folder there is dass.prune_ch",
    ),
    "a model for a folder": (
        lambda model, at: dass.prune_checkpoint(model, at / "out", tiny_tokens()),
        "folder_in is .*: expected the path of a folder",
    ),
    "a share in per cent": (
        lambda model, at: dass.prune(model, tiny_tokens(), sparsity=50),
        "sparsity is 50: expected .* between 0 and 1",
    ),
    "one projection as a string": (
        lambda model, at: dass.prune(model, tiny_tokens(), only="down_proj"),
        r"only is 'down_proj': expected a list of gate_proj, up_proj, down_proj, for example \[.down_proj.\]",
    ),
    "the last layer from behind": (
        lambda model, at: dass.prune(model, tiny_tokens(), skip_layers=[-1]),
        r"skip_layers is \[-1\]: expected a list of layer numbers from 0",
    ),
    "masks from a folder without any": (
        lambda model, at: dass.apply_masks(at, at, at / "out"),
        r"masks is .*: expected a mask file, or a folder with masks\.safetensors in it",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_told_what_was_expected(name: str, tmp_path: Path) -> None:
    call, message = CALLS[name]
    model: PreTrainedModel = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        call(model, tmp_path)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 250
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_there_is_not_is_named_by_python() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        dass.prune(tiny_model(), tiny_tokens(), sparsty=0.5)  # type: ignore[call-arg]


def test_twelve_calls_are_tried() -> None:
    assert len(CALLS) == 12
