"""Stages `baseline` and `evaluate`: what the dense and the pruned model score on the same held-out windows.

Both models are loaded and run by transformers alone, so a mistake of the pruning engine cannot hide itself here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dass.errors import InputError
from dass.files import complete_folder, read_json, write_json
from dass.masks.mask_file import MaskFile
from dass.masks.sparsity import ZeroCount, count_zeros
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_tokenizer
from tasks.evaluation.figures import divergence_record, ratio_interval, scores
from tasks.evaluation.generations import continued, generations, prompts_of
from tasks.evaluation.kept import (
    TOKENS,
    HiddenStates,
    comparison,
    key_of,
    load_losses,
    save_divergences,
    save_losses,
    windows_of,
)
from tasks.evaluation.measured_model import MeasuredModel
from tasks.evaluation.overlap import overlaps
from tasks.evaluation.texts import MAIN, read_texts
from tasks.evaluation.verdicts import verdicts
from tasks.sources.tokens import bos_token, check_context
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

DENSE, PROMPTS, RESULT = "dense.json", "prompts.json", "evaluation.json"


def evaluate_dense(ws: Workspace, settings: Settings) -> None:
    """Stage `baseline`: cut the held-out texts into windows and measure artifacts/base on them.

    Writes artifacts/evaluation: dense.json, and what `tasks.evaluation.kept` names.

    Raises:
        InputError: a text is missing, empty, changed or shorter than a window, or windows exceed the model's context.
        NumericalError: the model computes NaN or infinity.
    """
    asked = settings.evaluate
    _needs(ws.base, "sources")
    check_context(ws.base, asked.sequence_length, "evaluate.sequence_length")
    tokenizer = load_tokenizer(ws.base)
    texts = read_texts(ws, settings, tokenizer)
    dtype = choose_dtype(settings.engine.dtype, Checkpoint(ws.base).main_dtype, choose_device(settings.engine.device))
    measured_model = MeasuredModel(ws.base, settings.engine, dtype)
    bos = bos_token(asked.bos, ws.base)
    losses, records = {}, {}
    with complete_folder(ws.evaluation) as folder:
        for text in texts:
            hidden = HiddenStates(text.windows_WL)
            losses[text.name] = measured_model.losses(text.windows_WL, _described("dense", text.name), hidden)
            records[text.name] = {**text.record, **scores(losses[text.name], text.record)}
            hidden.save(folder, text.name)
        save_file({key_of(text.name): text.windows_WL.contiguous() for text in texts}, folder / TOKENS)
        save_losses(folder, losses)
        prompts_PL = prompts_of(texts[0], tokenizer, bos)
        dense = continued(measured_model.model, prompts_PL, asked.sequence_length)
        write_json(folder / PROMPTS, {"prompts": prompts_PL.tolist(), "dense": dense})
        record = {
            **records.pop(MAIN),
            "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
            "settings": asked.model_dump(mode="json", include={"samples", "sequence_length", "bos", "texts"}),
            "bos": bos is not None,
            "context_length": asked.sequence_length,
            "dtype": str(dtype).removeprefix("torch."),
            "texts": records,
        }
        write_json(folder / DENSE, record)


def evaluate_pruned(ws: Workspace, settings: Settings) -> None:
    """Stage `evaluate`: measure artifacts/pruned on the windows of the dense model, and count its zeros.

    Writes artifacts/measures, as `tasks.evaluation.kept` says, and metrics/evaluation.json. They hold no times: the
    same checkpoint and windows give the same bytes. The dense model is not loaded: only the hidden states that it left.

    Raises:
        InputError: a stage before has not run, or its files do not belong together.
        NumericalError: the model computes NaN or infinity.
    """
    before = ((ws.calibration, "calibration"), (ws.evaluation, "baseline"))
    for folder, stage in (*before, (ws.masks, "prune"), (ws.pruned, "materialize")):
        _needs(folder, stage)
    measured_model = MeasuredModel(ws.pruned, settings.engine, dtype_of(ws))
    measure_pruned(ws, settings, measured_model, Checkpoint(ws.pruned).iterate())


def dtype_of(ws: Workspace) -> torch.dtype:
    """What the dense model was measured in: a ratio is of two figures in one type, wherever the first was measured."""
    dtype: torch.dtype = getattr(torch, read_json(ws.evaluation / DENSE)["dtype"])
    return dtype


def measure_pruned(
    ws: Workspace, settings: Settings, measured_model: MeasuredModel, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """What stage `evaluate` does, of a pruned model that is at hand.

    Args:
        ws: with base, calibration, masks and the dense model's evaluation.
        settings: section `evaluate`.
        measured_model: the pruned model.
        tensors: every tensor of its checkpoint in turn.

    Raises:
        InputError, NumericalError: as `evaluate_pruned`.
    """
    masks = MaskFile(ws.masks / "masks.safetensors")
    base_checkpoint = Checkpoint(ws.base)
    base = count_zeros(((name, base_checkpoint.load([name])[name]) for name in masks), masks)
    pruned = count_zeros(tensors, masks)
    dense, manifest = read_json(ws.evaluation / DENSE), read_json(ws.masks / "manifest.json")
    texts = {MAIN: {key: value for key, value in dense.items() if key != "texts"}, **dense["texts"]}
    dense_losses = load_losses(ws.evaluation)
    losses, found, measured = {}, {}, {}
    for name, record in texts.items():
        compare, windows_WL = comparison(ws.evaluation, name), windows_of(ws.evaluation, name)
        losses[name] = measured_model.losses(windows_WL, _described("pruned", name), compare)
        found[name] = compare.result
        measured[name] = _measured(record, scores(losses[name], record)) | {
            "interval": ratio_interval(dense_losses[name], losses[name]),
            "divergence": divergence_record(found[name], windows_WL, dense_losses[name], losses[name]),
        }
    prompts = read_json(ws.evaluation / PROMPTS)
    written = continued(measured_model.model, torch.tensor(prompts["prompts"]), dense["context_length"])
    result = {
        **{key: dense[key] for key in ("context_length", "bos", "dtype")},
        **measured.pop(MAIN),
        **_sparsity(base, pruned, manifest["sparsity"]),
        "texts": measured,
        "generations": generations(load_tokenizer(ws.base), prompts["prompts"], prompts["dense"], written),
        "overlap": overlaps(ws, texts, {name: windows_of(ws.evaluation, name) for name in texts}, dense["bos"]),
    }
    with complete_folder(ws.measures) as folder:
        save_losses(folder, losses)
        save_divergences(folder, found)
    write_json(ws.metrics / RESULT, {**result, "verdicts": verdicts(result, settings.evaluate.samples)})


def _measured(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: dense[key] for key in ("windows", "tokens", "words", "bytes")},
        "dense": {key: dense[key] for key in pruned},
        "pruned": pruned,
        "ratio": pruned["perplexity"] / dense["perplexity"],
    }


def _sparsity(base: ZeroCount, pruned: ZeroCount, mask_sparsity: dict[str, float]) -> dict[str, Any]:
    return {
        "sparsity": {"mlp": pruned.mlp_sparsity, "model": pruned.model_sparsity},
        "zeros": {"base_mlp": base.mlp_zeros, "pruned_mlp": pruned.mlp_zeros},
        "mask_sparsity": mask_sparsity,
    }


def _described(which: str, text: str) -> str:
    return f"evaluate {which} model" + ("" if text == MAIN else f" on {text}")


def _needs(folder: Path, stage: str) -> None:
    if not folder.is_dir():
        raise InputError(f"No {folder}. Run: dass run, or dvc repro {stage}")
