"""The baseline and evaluate stages on tiny models, against transformers' own loss."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dass.errors import InputError, NumericalError
from dass.files import read_json, sha256_file
from dass.model.pretrained import load_tokenizer
from tasks.evaluation.stages import evaluate_dense, evaluate_pruned
from tasks.sources.base import fetch_base
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.workspaces import change_settings, start_workspace


def ready(root: Path, family: str = "llama", **changes: object) -> tuple[Workspace, Settings]:
    workspace, settings = start_workspace(root, family, **changes)
    fetch_base(workspace, settings)
    return workspace, settings


def loss_by_transformers(checkpoint: Path, windows_WL: torch.Tensor) -> float:
    """What the model itself returns as loss when it is given labels; windows are of equal length."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        return float(model(input_ids=windows_WL, labels=windows_WL).loss)


def test_dense_perplexity_is_that_of_the_models_own_loss(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path)
    evaluate_dense(workspace, settings)
    dense = read_json(workspace.evaluation / "dense.json")
    windows_WL = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    assert windows_WL.shape == (5, 32)
    assert (dense["context_length"], dense["windows"], dense["tokens"]) == (32, 5, 5 * 31)
    assert dense["mean_loss"] == pytest.approx(loss_by_transformers(workspace.base, windows_WL), rel=1e-5)
    assert dense["perplexity"] == math.exp(dense["mean_loss"])


def test_the_windows_follow_one_another_in_the_text(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path)
    evaluate_dense(workspace, settings)
    windows_WL = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    text = load_tokenizer(workspace.base).decode(windows_WL.flatten().tolist())
    assert isinstance(text, str)
    assert (workspace.root / "held_out.txt").read_text().startswith(text)


def test_the_whole_text_is_taken_when_samples_is_null(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, evaluate__samples=None)
    evaluate_dense(workspace, settings)
    tokens = len(load_tokenizer(workspace.base)((workspace.root / "held_out.txt").read_text())["input_ids"])
    assert read_json(workspace.evaluation / "dense.json")["windows"] == tokens // 32 > 5


def test_gemma_gets_its_bos_token_in_every_window(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, "gemma3_text")
    evaluate_dense(workspace, settings)
    windows_WL = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    assert read_json(workspace.evaluation / "dense.json")["bos"] is True
    assert windows_WL[:, 0].tolist() == [load_tokenizer(workspace.base).bos_token_id] * 5


def test_the_pruned_checkpoint_is_measured_on_the_same_windows(finished: Workspace) -> None:
    result, dense = read_json(finished.metrics / "evaluation.json"), read_json(finished.evaluation / "dense.json")
    windows_WL = load_file(finished.evaluation / "tokens.safetensors")["input_ids"]
    assert result["pruned"]["mean_loss"] == pytest.approx(loss_by_transformers(finished.pruned, windows_WL), rel=1e-5)
    assert result["dense"] == {key: dense[key] for key in ("perplexity", "mean_loss")}
    assert result["ratio"] == result["pruned"]["perplexity"] / dense["perplexity"]
    assert (result["context_length"], result["tokens"]) == (32, 155)


def test_zeros_are_counted_in_the_saved_checkpoint(finished: Workspace, settings: Settings) -> None:
    path = finished.pruned / "model.safetensors"
    weights = load_file(path)
    size = weights["model.layers.0.mlp.up_proj.weight"].numel()
    weights["model.layers.0.mlp.up_proj.weight"].zero_()
    weights["model.norm.weight"].zero_()
    save_file(weights, path, {"format": "pt"})
    evaluate_pruned(finished, settings)
    result = read_json(finished.metrics / "evaluation.json")
    mlp = 9 * size
    assert result["zeros"] == {"base_mlp": 0, "pruned_mlp": mlp // 2 + size // 2}
    assert result["sparsity"]["mlp"] == (mlp // 2 + size // 2) / mlp
    everything = sum(weight.numel() for weight in weights.values())
    assert result["sparsity"]["model"] == (mlp // 2 + size // 2 + weights["model.norm.weight"].numel()) / everything
    assert result["mask_sparsity"]["mlp"] == 0.5


def test_the_same_checkpoint_gives_the_same_bytes(finished: Workspace, settings: Settings) -> None:
    files = [finished.metrics / "evaluation.json", *sorted(finished.evaluation.iterdir())]
    before = [sha256_file(file) for file in files]
    evaluate_dense(finished, settings)
    evaluate_pruned(finished, settings)
    assert [sha256_file(file) for file in files] == before


def test_engine_dtype_is_what_is_computed_in(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path)
    evaluate_dense(workspace, settings)
    exact = read_json(workspace.evaluation / "dense.json")["mean_loss"]
    evaluate_dense(workspace, change_settings(workspace, engine__dtype="bfloat16"))
    rounded = read_json(workspace.evaluation / "dense.json")["mean_loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_windows_longer_than_the_models_context_are_refused(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, evaluate__sequence_length=129)
    with pytest.raises(InputError, match=r"evaluate\.sequence_length is 129: the model's context is 128 tokens"):
        evaluate_dense(workspace, settings)
    assert not workspace.evaluation.exists()


def test_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    workspace, _ = ready(tmp_path)
    (workspace.root / "held_out.txt").write_text("the model")
    with pytest.raises(InputError, match="evaluate: The text gives 0 windows of 32 tokens"):
        evaluate_dense(workspace, change_settings(workspace))


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_empty_text_is_refused(tmp_path: Path, text: str) -> None:
    workspace, _ = ready(tmp_path)
    (workspace.root / "held_out.txt").write_text(text)
    with pytest.raises(InputError):
        evaluate_dense(workspace, change_settings(workspace))
    assert not workspace.evaluation.exists()


def test_a_model_that_computes_nan_is_named(finished: Workspace, settings: Settings) -> None:
    path = finished.pruned / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, path, {"format": "pt"})
    before = (finished.metrics / "evaluation.json").read_bytes()
    with pytest.raises(NumericalError, match="pruned model: The loss of window 0 of 5 is nan"):
        evaluate_pruned(finished, settings)
    assert (finished.metrics / "evaluation.json").read_bytes() == before


def test_a_stage_that_has_not_run_is_named(tmp_path: Path) -> None:
    workspace, settings = start_workspace(tmp_path)
    with pytest.raises(InputError, match="No .*artifacts/base. Run: dass run, or dvc repro sources"):
        evaluate_dense(workspace, settings)
    with pytest.raises(InputError, match="or dvc repro baseline"):
        evaluate_pruned(workspace, settings)
