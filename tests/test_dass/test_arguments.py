"""What is given to the public functions in place of what is expected gets one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BatchEncoding

import dass
from dass.engine.fits import check_checkpoint_fits
from dass.errors import InputError
from dass.method.plan import plan
from tests.models import tiny_model, tiny_tokens

TOKENS: list[tuple[Any, str]] = [
    (BatchEncoding({"tokens": tiny_tokens()}), 'is a BatchEncoding without "input_ids": expected a LongTensor'),
    ("some text", "input_ids is a str"),
    (Path("tokens.safetensors"), "input_ids is a PosixPath"),
    (tiny_tokens().float(), "expected whole numbers"),
    (tiny_tokens() > 5, "expected whole numbers"),
    (torch.full((2, 16), 60000), "the token id 60000: expected 0 to 299"),
    (torch.full((2, 16), -100), "the token id -100: expected 0 to 299"),
    (tiny_tokens(1, 200), "windows of 200 tokens: the model's context is 128"),
]
ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": "0.5"}, "sparsity is '0.5': expected"),
    ({"sparsity": True}, "sparsity is True"),
    ({"sparsity": float("nan")}, "sparsity is nan"),
    ({"alpha": "1"}, "alpha is '1': expected a number"),
    ({"alpha": None}, "alpha is None"),
    ({"method": None}, "method is None: expected one of dass"),
    ({"method": tiny_model()}, "method is a LlamaForCausalLM: expected one of dass"),
    ({"pattern": 30 * [30 * "text"]}, "pattern is a list: expected"),
    ({"pattern": None}, "pattern is None"),
    ({"damping": "small"}, "damping is 'small'"),
    ({"min_expert_tokens": 1.5}, "min_expert_tokens is 1.5"),
    ({"batch_tokens": 0}, "batch_tokens is 0: expected 1 or more"),
    ({"batch_tokens": "auto"}, "batch_tokens is 'auto'"),
    ({"hidden_states": "ram"}, "hidden_states is 'ram': expected one of auto, device, host, disk"),
    ({"on_layer": "print"}, "on_layer is 'print': expected a function"),
    ({"progress": 1}, "progress is 1: expected True or False"),
]
OF_CHECKPOINTS: list[tuple[dict[str, Any], str]] = [
    ({"device": "gpu"}, "device is 'gpu': expected one of this machine"),
    ({"device": None}, "device is None"),
    ({"device": "meta"}, 'device is "meta"'),
    ({"dtype": "bfloat16"}, "dtype is 'bfloat16': expected torch.float32"),
    ({"dtype": torch.int8}, r"dtype is torch\.int8"),
    ({"work": 3}, "work is 3: expected the path of a folder"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ({"overwrite": "yes"}, "overwrite is 'yes': expected True or False"),
]


@pytest.mark.parametrize(("tokens", "message"), TOKENS)
def test_what_are_no_windows_of_this_model_is_refused(tokens: Any, message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=message):
        dass.prune(tiny_model(), tokens)
    with pytest.raises(InputError, match=message):
        dass.prune_checkpoint(tiny_checkpoint, tiny_checkpoint.parent / "out", tokens)
    assert not (tiny_checkpoint.parent / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_other_arguments_are_refused_before_anything_changes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dass.prune(tiny_model(), tiny_tokens(), **arguments)


@pytest.mark.parametrize(("arguments", "message"), [*ARGUMENTS, *OF_CHECKPOINTS])
def test_and_so_are_those_for_checkpoints(arguments: dict[str, Any], message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=message):
        dass.prune_checkpoint(tiny_checkpoint, tiny_checkpoint.parent / "out", tiny_tokens(), **arguments)
    assert sorted(path.name for path in tiny_checkpoint.parent.iterdir()) == ["model"]


def test_a_module_has_no_pattern_its_weight_has() -> None:
    linear: Any = nn.Linear(4, 4)
    with pytest.raises(InputError, match=r"the weight is a Linear: .*module\.weight"):
        dass.pattern_of(linear)
    assert dass.pattern_of(linear.weight).zero_share == 0.0


def test_a_config_alone_says_whether_a_plan_fits(tiny_checkpoint: Path) -> None:
    for weights in tiny_checkpoint.glob("*.safetensors"):
        weights.unlink()
    check_checkpoint_fits(tiny_checkpoint, plan(pattern="2:4"))
    with pytest.raises(InputError, match=r"size of model\.layers\.0\.mlp is 64, not a multiple of M=5"):
        check_checkpoint_fits(tiny_checkpoint, plan(pattern="3:5"))
    (tiny_checkpoint / "config.json").unlink()
    with pytest.raises(InputError, match=r"No config\.json"):
        check_checkpoint_fits(tiny_checkpoint, plan())
