"""Every family prunes, saves, reloads through transformers and generates; on disk and in memory alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dass
import tests.unlisted  # noqa: F401  registers itself
from benchmarks.masks import check_bits
from dass.method.methods import PROJECTIONS
from dass.model.checkpoint import Checkpoint
from tests.models import EVERY_FAMILY, fast_dtype, tiny_model, tiny_tokens
from tests.test_dass.matrices import check_exact, matrices

ROOT = Path(__file__).parents[3]
FAMILIES = [*EVERY_FAMILY, "unlisted"]
OPTIONS: dict[str, dict[str, Any]] = {
    "sparsegpt and a re-fit": {
        "method": "sparsegpt",
        "pattern": "2:4",
        "update": "reconstruct",
        "min_expert_tokens": 24,
    },
    "dense propagation": {"propagation": "dense", "pattern": "4:8"},
    "owl": {"allocation": "owl"},
}
MLP_MATRICES = {  # of 3 layers
    **dict.fromkeys(FAMILIES, 9),
    "mixtral": 36,
    "qwen3_moe": 36,
    "qwen2_moe": 3 + 2 * 15,
    "deepseek_v3": 3 + 2 * 15,
}


def saved(family: str, dtype: torch.dtype, folder: Path) -> Path:
    """A tiny model of the family, in several shards."""
    tiny_model(family, dtype).save_pretrained(folder, max_shard_size="30KB")
    assert len(Checkpoint(folder).files) > 1
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_prunes_saves_reloads_and_generates(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = saved(family, dtype, tmp_path / "base")
    written = dass.prune_checkpoint(base, tmp_path / "pruned", tiny_tokens(), min_expert_tokens=24)
    in_memory = loaded(base)
    keep = dass.prune(in_memory, tiny_tokens(), min_expert_tokens=24).keep
    assert len(list(matrices(keep))) == MLP_MATRICES[family]
    check_exact(keep)
    for report in written.layers:
        assert report.sparsity == dict.fromkeys(PROJECTIONS, 0.5)
        assert report.relative_error is not None
        assert 0.0 < report.relative_error < 1.5
    pruned = loaded(tmp_path / "pruned")
    assert pruned.dtype == dtype
    check_bits(loaded(base).state_dict(), pruned.state_dict(), keep)
    check_bits(loaded(base).state_dict(), in_memory.state_dict(), keep)
    prompt = tiny_tokens(1, 5)
    ids = pruned.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert ids.shape == (1, 8)
    assert torch.equal(ids[:, :5], prompt)
    logits = pruned(input_ids=prompt).logits[0, -1]
    logits[1] = -torch.inf  # no end before three tokens
    assert int(ids[0, 5]) == int(logits.argmax())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_and_a_model_in_memory_get_the_same_bits(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if family == "unlisted" and "update" in options:
        options = {**options, "update": "none"}  # it computes its activation itself
    base = saved(family, torch.float32, tmp_path / "base")
    written = dass.prune_checkpoint(base, tmp_path / "pruned", tiny_tokens(), **options)
    model = loaded(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = dass.prune(model, tiny_tokens(), **options)
    expected, actual = model.state_dict(), loaded(tmp_path / "pruned").state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name].view(torch.int32), value.view(torch.int32)), name
        if name in report.keep:
            assert torch.equal(value != 0, report.keep[name]), name
        else:
            assert torch.equal(value, before[name]), name
    if "allocation" not in options:
        check_exact(report.keep, options["pattern"], options.get("method", "dass"))
    for one, other in zip(written.layers, report.layers, strict=True):
        assert (one.sparsity, one.pattern, one.runs_2_4) == (other.sparsity, other.pattern, other.runs_2_4)
        assert (one.damping, one.starved_experts) == (other.damping, other.starved_experts)
        assert one.relative_error == other.relative_error


def test_the_checks_above_can_fail() -> None:
    keep = torch.tensor([[[True, True], [False, False], [True, True], [True, False]]])  # one expert: I 2, H 2
    with pytest.raises(AssertionError, match=r"experts\.gate_up_proj: up_proj does not keep 1"):
        check_exact({"mlp.experts.gate_up_proj": keep})
    assert [projection for _, projection, _ in matrices({"mlp.experts.gate_up_proj": keep})] == ["gate_proj", "up_proj"]


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_under_a_mistral_config_gets_the_masks_it_gets_as_a_llama(
    real_base: Callable[[Path], Path], tmp_path: Path
) -> None:
    base = real_base(ROOT / "params.yaml")
    config = json.loads((base / "config.json").read_text())
    assert config["model_type"] == "llama"
    mistral = shutil.copytree(base, tmp_path / "mistral", copy_function=shutil.copyfile)
    changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4096}
    (mistral / "config.json").write_text(json.dumps(config | changes))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")["input_ids"][:, :128].reshape(2, 64)
    outputs = []
    for folder in (base, mistral):
        report = dass.prune_checkpoint(folder, tmp_path / "pruned", ids, dtype=fast_dtype(folder))
        assert all(layer.sparsity == dict.fromkeys(PROJECTIONS, 0.5) for layer in report.layers)
        outputs.append(load_file(tmp_path / "pruned" / "model.safetensors"))
    assert loaded(tmp_path / "pruned").config.model_type == "mistral"
    assert outputs[0].keys() == outputs[1].keys()
    assert all(torch.equal(value, outputs[1][name]) for name, value in outputs[0].items())
    changed = {
        name for name, value in load_file(base / "model.safetensors").items() if value.ne(outputs[1][name]).any()
    }
    assert len(changed) == 3 * config["num_hidden_layers"]
