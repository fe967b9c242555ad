"""Stages `baseline` and `evaluate`: what the dense and the pruned model score on the same held-out windows.

Both models are loaded and run by transformers alone, so a mistake of the pruning engine cannot hide itself here.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.errors import InputError, NumericalError
from dass.files import complete_folder, read_json, write_json
from dass.masks.mask_file import MaskFile
from dass.masks.sparsity import ZeroCount, count_zeros
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_model, load_tokenizer
from dass.perplexity import mean_loss, perplexity
from dass.windows import consecutive_windows
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pinned
from tasks.sources.tokens import bos_token, check_context, check_ids, tokenize
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Engine, Settings

TOKENS, DENSE, RESULT = "tokens.safetensors", "dense.json", "evaluation.json"


def evaluate_dense(ws: Workspace, settings: Settings) -> None:
    """Stage `baseline`: cut the held-out text into windows and measure artifacts/base on them.

    Writes artifacts/evaluation: tokens.safetensors (the windows) and dense.json.

    Raises:
        InputError: the text is missing, empty, changed or shorter than a window, or windows exceed the model's context.
        NumericalError: the model computes NaN or infinity.
    """
    asked, source = settings.evaluate, settings.sources.evaluation
    _needs(ws.base, "sources")
    check_context(ws.base, asked.sequence_length, "evaluate.sequence_length")
    documents = read_documents(source, pinned(ws, "evaluation", source), ws.root)
    bos = bos_token(asked.bos, ws.base)
    wanted = None if asked.samples is None else asked.samples * asked.sequence_length
    tokens_N = tokenize(load_tokenizer(ws.base), documents.texts, wanted)
    try:
        windows_WL = consecutive_windows(tokens_N, asked.sequence_length, asked.samples, bos)
    except InputError as error:
        raise InputError(f"evaluate: {error}") from None
    check_ids(ws.base, windows_WL)
    dtype = choose_dtype(settings.engine.dtype, Checkpoint(ws.base).main_dtype, choose_device(settings.engine.device))
    loss = _measure(ws.base, windows_WL, settings.engine, dtype, "evaluate dense model")
    windows, length = windows_WL.shape
    record = {
        "source": {"uri": source.uri, "sha256": documents.sha256},
        "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
        "settings": asked.model_dump(include={"samples", "sequence_length", "bos"}),
        "bos": bos is not None,
        "context_length": length,
        "windows": windows,
        "tokens": windows * (length - 1),
        "dtype": str(dtype).removeprefix("torch."),
        "digest": hashlib.sha256(windows_WL.numpy().astype("<i8").tobytes()).hexdigest(),
        "mean_loss": loss,
        "perplexity": perplexity(loss),
    }
    with complete_folder(ws.evaluation) as folder:
        save_file({"input_ids": windows_WL.contiguous()}, folder / TOKENS)
        write_json(folder / DENSE, record)


def evaluate_pruned(ws: Workspace, settings: Settings) -> None:
    """Stage `evaluate`: measure artifacts/pruned on the windows of the dense model, and count its zeros.

    Writes metrics/evaluation.json. It holds no times: the same checkpoint and windows give the same bytes.

    Raises:
        InputError: a stage before has not run, or its files do not belong together.
        NumericalError: the model computes NaN or infinity.
    """
    for folder, stage in ((ws.evaluation, "baseline"), (ws.masks, "prune"), (ws.pruned, "materialize")):
        _needs(folder, stage)
    masks = MaskFile(ws.masks / "masks.safetensors")
    base_checkpoint = Checkpoint(ws.base)
    base = count_zeros(((name, base_checkpoint.load([name])[name]) for name in masks), masks)
    pruned = count_zeros(Checkpoint(ws.pruned).iterate(), masks)
    windows_WL = load_file(ws.evaluation / TOKENS)["input_ids"]
    dense, manifest = read_json(ws.evaluation / DENSE), read_json(ws.masks / "manifest.json")
    dtype = getattr(torch, dense["dtype"])  # a ratio of two figures in one type, wherever the first was measured
    loss = _measure(ws.pruned, windows_WL, settings.engine, dtype, "evaluate pruned model")
    write_json(ws.metrics / RESULT, _result(dense, loss, base, pruned, manifest["sparsity"]))


def _result(
    dense: dict[str, Any], loss: float, base: ZeroCount, pruned: ZeroCount, mask_sparsity: dict[str, float]
) -> dict[str, Any]:
    pruned_perplexity = perplexity(loss)
    return {
        **{key: dense[key] for key in ("context_length", "windows", "tokens", "bos", "dtype")},
        "dense": {"perplexity": dense["perplexity"], "mean_loss": dense["mean_loss"]},
        "pruned": {"perplexity": pruned_perplexity, "mean_loss": loss},
        "ratio": pruned_perplexity / dense["perplexity"],
        "sparsity": {"mlp": pruned.mlp_sparsity, "model": pruned.model_sparsity},
        "zeros": {"base_mlp": base.mlp_zeros, "pruned_mlp": pruned.mlp_zeros},
        "mask_sparsity": mask_sparsity,
    }


def _measure(checkpoint: Path, windows_WL: Tensor, engine: Engine, dtype: torch.dtype, description: str) -> float:
    """Mean loss of the checkpoint as anyone else would load it.

    Raises:
        InputError: transformers cannot read it, or would make up, drop or resize a weight.
        NumericalError: the model computes NaN or infinity.
    """
    device: Any = choose_device(engine.device)
    model = load_model(checkpoint, dtype).to(device)
    batch_tokens = None if engine.batch_tokens == "auto" else engine.batch_tokens
    with progress_bar(len(windows_WL), description, "windows") as advance:
        try:
            return mean_loss(model, windows_WL, batch_tokens, advance)
        except NumericalError as error:
            raise NumericalError(f"{checkpoint.name} model: {error}") from None


def _needs(folder: Path, stage: str) -> None:
    if not folder.is_dir():
        raise InputError(f"No {folder}. Run: dass run, or dvc repro {stage}")
