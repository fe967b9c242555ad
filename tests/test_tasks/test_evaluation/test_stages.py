"""The baseline and evaluate stages on tiny models, against transformers' own loss."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dass.errors import InputError, NumericalError
from dass.files import read_json, sha256_file
from dass.model import memory
from dass.model.pretrained import load_tokenizer
from tasks.evaluation.stages import evaluate_dense, evaluate_pruned
from tasks.sources.base import fetch_base
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.workspaces import STAGES, change_settings, start_workspace


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
    assert result["dense"] == {key: dense[key] for key in result["pruned"]}
    assert set(result["dense"]) == {"perplexity", "mean_loss", "word_perplexity", "byte_perplexity"}
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
    made = [*finished.evaluation.rglob("*"), *finished.measures.rglob("*")]
    files = [finished.metrics / "evaluation.json", *sorted(path for path in made if path.is_file())]
    assert len(files) == 1 + 5 + 2
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
    with pytest.raises(InputError, match="or dvc repro calibration"):
        evaluate_pruned(workspace, settings)


def test_every_token_of_both_models_is_kept_and_compared(finished: Workspace) -> None:
    result = read_json(finished.metrics / "evaluation.json")
    losses = {which: load_file(folder / "losses.safetensors")["evaluation"] for which, folder in folders(finished)}
    assert {each.shape for each in losses.values()} == {(5, 31)}
    for which, losses_WL in losses.items():
        assert losses_WL.mean(dtype=torch.float64).item() == result[which]["mean_loss"]
    low, high = result["interval"]["ratio"]
    assert low < result["ratio"] < high
    divergence, tokens = result["divergence"], load_file(finished.measures / "divergence.safetensors")
    assert divergence["tokens"] == 155
    assert divergence["kl"] == tokens["evaluation.kl"].mean(dtype=torch.float64).item() > 0
    assert divergence["top1_agreement"] == tokens["evaluation.top1"].double().mean().item()
    assert divergence["kl"] == pytest.approx(kl_by_transformers(finished), rel=1e-3)
    assert result["verdicts"] == []
    assert result["overlap"]["evaluation"]["grams"] == 5 * (32 - 12)


def folders(ws: Workspace) -> list[tuple[str, Path]]:
    return [("dense", ws.evaluation), ("pruned", ws.measures)]


def kl_by_transformers(ws: Workspace) -> float:
    windows_WL = load_file(ws.evaluation / "tokens.safetensors")["input_ids"]
    with torch.no_grad():
        base, pruned = (
            AutoModelForCausalLM.from_pretrained(folder)(windows_WL).logits[:, :-1].double().log_softmax(-1)
            for folder in (ws.base, ws.pruned)
        )
    return float((base.exp() * (base - pruned)).sum(-1).mean())


def test_a_checkpoint_does_not_diverge_from_itself(finished: Workspace, settings: Settings) -> None:
    for name in ("model.safetensors", "config.json"):
        (finished.pruned / name).write_bytes((finished.base / name).read_bytes())
    evaluate_pruned(finished, settings)
    result = read_json(finished.metrics / "evaluation.json")
    divergence = result["divergence"]
    assert (divergence["kl"], divergence["top1_agreement"], divergence["top5_overlap"]) == (0.0, 1.0, 1.0)
    assert result["ratio"] == 1.0
    assert result["interval"]["ratio"] == [1.0, 1.0]
    assert [each["diverges_at"] for each in result["generations"]] == [None] * 10


def test_a_checkpoint_larger_than_memory_is_measured_layer_by_layer(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_json(finished.metrics / "evaluation.json")
    monkeypatch.setattr(memory, "MEMORY_SHARE", 0.0)
    evaluate_dense(finished, settings)
    evaluate_pruned(finished, settings)
    streamed = read_json(finished.metrics / "evaluation.json")
    for which in ("dense", "pruned"):
        assert streamed[which]["mean_loss"] == pytest.approx(whole[which]["mean_loss"], abs=1e-4)
    assert streamed["divergence"]["kl"] == pytest.approx(whole["divergence"]["kl"], abs=1e-4)
    assert (streamed["generations"], streamed["verdicts"]) == ([], [])


def test_named_texts_have_figures_of_their_own(tmp_path: Path) -> None:
    workspace, settings = ready(
        tmp_path, evaluate__texts={"held": {"uri": "./held_out.txt"}, "calibrated": {"uri": "./text.txt"}}
    )
    for stage in STAGES[1:]:
        stage(workspace, settings)
    result = read_json(workspace.metrics / "evaluation.json")
    assert list(result["texts"]) == ["held", "calibrated"]
    held = result["texts"]["held"]
    assert held == {key: result[key] for key in held}
    assert result["texts"]["calibrated"]["dense"] != result["dense"]
    assert result["overlap"]["calibrated"]["share"] == 1.0 > result["overlap"]["held"]["share"]
    windows_WL = load_file(workspace.evaluation / "tokens.safetensors")["texts.calibrated"]
    expected = loss_by_transformers(workspace.base, windows_WL)
    assert result["texts"]["calibrated"]["dense"]["mean_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_named_text_that_is_too_short_is_named(tmp_path: Path) -> None:
    workspace, _ = ready(tmp_path)
    (workspace.root / "short.txt").write_text("the model")
    with pytest.raises(InputError, match=r"evaluate\.texts\.short: The text gives 0 windows of 32 tokens"):
        evaluate_dense(workspace, change_settings(workspace, evaluate__texts={"short": {"uri": "./short.txt"}}))
    assert not workspace.evaluation.exists()


def test_a_text_with_too_few_windows_is_told(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path, evaluate__samples=5000)
    for stage in STAGES[1:]:
        stage(workspace, settings)
    (verdict,) = read_json(workspace.metrics / "evaluation.json")["verdicts"]
    assert verdict["verdict"] == "incomplete"
    assert "of 5000 windows" in verdict["told"]


def test_words_and_bytes_are_those_of_the_predicted_tokens(tmp_path: Path) -> None:
    workspace, settings = ready(tmp_path)
    evaluate_dense(workspace, settings)
    dense = read_json(workspace.evaluation / "dense.json")
    windows_WL = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    tokenizer = load_tokenizer(workspace.base)
    text = [str(tokenizer.decode(ids[1:])) for ids in windows_WL.tolist()]
    assert dense["bytes"] == sum(len(each.encode()) for each in text)
    assert dense["words"] == sum(len(each.split()) for each in text)
    assert dense["byte_perplexity"] == pytest.approx(math.exp(dense["mean_loss"] * 155 / dense["bytes"]))
