"""`dass.prune`: a model in memory. `dass.prune_checkpoint`: a checkpoint on disk, one layer in memory at a time."""

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dass.arguments import check_callback, check_device, check_dtype, check_flag, check_path
from dass.calibration import DEFAULT_LENGTH, calibration_windows
from dass.engine.choice import Choice
from dass.engine.dense import LayerStatistics, allocate, dense_statistics, layer_outliers, prune_from_statistics
from dass.engine.fits import check_fits
from dass.engine.hidden import Place
from dass.engine.layer_report import LayerReport, LayerResult
from dass.engine.layerwise import Buffering, wanted_by
from dass.engine.made import write_parameters
from dass.engine.pruner import LayerwisePruner
from dass.engine.run import CheckpointRun
from dass.engine.search import Search
from dass.engine.sensitive import sensitive_patterns, sensitivities
from dass.engine.version import ENGINE_VERSION
from dass.engine.windows import Tokens, check_windows, hold_back, windows_of
from dass.errors import InputError
from dass.files import canonical_json, clear_leftovers, complete_folder, digest_of, sha256_file
from dass.masks.mask_file import MASKS, apply_to_checkpoint, removed_shares, save_masks
from dass.masks.pruned_record import check_replaceable, history, told, write_record
from dass.method.methods import DEFAULT_ALPHA, Score
from dass.method.pattern import Pattern
from dass.method.plan import Plan, plan
from dass.model.checkpoint import Checkpoint
from dass.model.decoder import Decoder
from dass.model.in_memory import borrowed, check_model
from dass.model.streaming import StreamedDecoder
from dass.outputs import check_place, check_written_into, lies_in
from dass.progress import layer_bar
from dass.reports import CheckpointReport, PruneReport


class PlanOptions(TypedDict, total=False):
    """Further settings of `prune` and `prune_checkpoint`; `dass.method.plan.Plan` explains each.

    layout: "paper", "contraction" or "transposable". update: "none", "reconstruct", "reconstruct-mlp" or
    "reconstruct-block" (`epochs` times over the windows, `tune_norms`: the norms around the MLP too). allocation:
    "uniform", "owl" or "sensitivity" (within `owl_bound`). propagation: "pruned" or "dense". damping: λ of SparseGPT
    and the re-fit. min_expert_tokens: experts routed fewer tokens are judged on all of their layer's. refine: "none" or
    "swaps", at most `max_swaps` a row. auto_windows: the calibration windows that method "auto" and allocation
    "sensitivity" judge by. auto_budget: how many changes of a layer "auto" tries.
    validation_share: share of the windows, the last ones, that no re-fit is fitted to. only: the projections that are
    pruned, ["gate_proj", "up_proj", "down_proj"] or some of them; skip_layers: numbers of layers that are not. What is
    left alone keeps its values, and the rest is not pruned further in its place.
    """

    layout: str
    update: str
    allocation: str
    owl_bound: float
    propagation: str
    damping: float | None
    min_expert_tokens: int
    refine: str
    max_swaps: int
    auto_windows: int
    auto_budget: int
    validation_share: float
    epochs: int
    tune_norms: bool
    only: Sequence[str]
    skip_layers: Sequence[int]


def prune(
    model: PreTrainedModel,
    input_ids: Tokens | None = None,
    method: str = "dass",
    sparsity: float | None = None,
    pattern: str = "unstructured",
    alpha: float = DEFAULT_ALPHA,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: str | Sequence[str] | None = None,
    batch_tokens: int | None = None,
    hidden_states: Place = "auto",
    on_layer: Callable[[LayerReport], None] | None = None,
    progress: bool = False,
    **options: Unpack[PlanOptions],
) -> PruneReport:
    """Prune the GLU MLPs of a causal LM in place, one shot (arXiv 2405.01943).

    Only gate, up and down projections change: removed weights become +0.0. Kept ones keep their bits, unless the method
    is "sparsegpt" or an update is asked for.

    Args:
        model: a transformers causal LM, float32, bfloat16 or float16, on any one device.
        input_ids: calibration tokens: a LongTensor (samples, length), a tokenizer's output, or a list of windows.
        method: "dass", "wanda", "magnitude" or "sparsegpt"; "auto": for each layer Wanda's or DaSS's score, so that
            the whole model's predictions stay nearest to the dense one's.
        sparsity: share of MLP weights to remove; None means 0.5, or what an N:M pattern implies.
        pattern: "unstructured", or "N:M" (keep N of every M).
        alpha: exponent of the neuron norm in DaSS's gate and up scores; "auto" tries 0.5, 1, 1.5 and this one.
        tokenizer, texts: in place of input_ids: the model's tokenizer and texts to draw windows from, up to 128 of up
            to 512 tokens. `calibration_windows` does the same with a say in how.
        batch_tokens: tokens computed at once; None chooses by device.
        hidden_states: where the calibration hidden states lie: "auto", "device", "host" or "disk".
        on_layer: called with each layer's report as it is done.
        progress: whether to show a bar on stderr.
        **options: see PlanOptions.

    Returns:
        The keep masks and a report per layer.

    Raises:
        InputError: a value that cannot be used; nothing has changed.
        NumericalError: NaN or infinite activations; the layers before the named one are pruned.

    Example:
        >>> report = dass.prune(model, input_ids, pattern="2:4")
        >>> report.keep["model.layers.0.mlp.down_proj.weight"].float().mean()
        tensor(0.5000)
    """
    what = plan(method, sparsity, pattern, alpha, **options)
    buffering = Buffering(batch_tokens, hidden_states)
    check_callback(on_layer)
    check_flag("progress", progress)
    decoder = Decoder(check_model(model))
    windows_ST = _windows(decoder, input_ids, tokenizer, texts)
    check_windows(decoder, windows_ST)
    keep: dict[str, Tensor] = {}
    layers: list[LayerReport] = []
    with borrowed(model), layer_bar(len(decoder), progress) as one_more:
        prepared = _prepare(decoder, windows_ST, what, buffering)
        for result in _layers(decoder, prepared, what, buffering):
            keep |= result.keep
            layers.append(result.report)
            one_more()
            if on_layer is not None:
                on_layer(result.report)
    return PruneReport(keep, layers, prepared.choice)


def _windows(decoder: Decoder, input_ids: Any, tokenizer: Any, texts: Any) -> Tensor:
    if input_ids is not None:
        if tokenizer is not None or texts is not None:
            raise InputError("input_ids is given, and tokenizer or texts too: expected one or the other.")
        return windows_of(input_ids)
    if tokenizer is None or texts is None:
        given = "texts is" if texts is not None else "tokenizer is" if tokenizer is not None else "nothing is"
        raise InputError(f"{given} given to calibrate on: expected input_ids, or tokenizer and texts together.")
    length = min(DEFAULT_LENGTH, decoder.context or DEFAULT_LENGTH)
    return calibration_windows(tokenizer, texts, sequence_length=length)


@dataclass(frozen=True)
class _Prepared:
    """What is known before the first layer of a model in memory is pruned.

    Attributes:
        fitted_ST: the windows it is pruned with.
        statistics: of each dense layer; empty where they are not needed.
        patterns, scores: of each layer.
        choice: how the scores were chosen; None: the plan names them.
    """

    fitted_ST: Tensor
    statistics: list[LayerStatistics]
    patterns: list[Pattern]
    scores: list[Score]
    choice: Choice | None


def _prepare(decoder: Decoder, input_ids_ST: Tensor, what: Plan, buffering: Buffering) -> _Prepared:
    check_fits(decoder, what)
    fitted_ST, held_back_WT = hold_back(input_ids_ST, what)
    patterns: list[Pattern] = [what.pattern] * len(decoder)
    statistics: list[LayerStatistics] = []
    if what.propagation == "dense" or what.allocation != "uniform":
        wanted = (
            wanted_by(what) if what.propagation == "dense" else replace(wanted_by(what), gram_x=False, gram_z=False)
        )
        statistics = list(dense_statistics(decoder, fitted_ST, wanted, buffering=buffering))
    if what.allocation == "sensitivity":
        costs = sensitivities(decoder, statistics.__getitem__, held_back_WT, what, buffering)
        patterns = sensitive_patterns(decoder, costs, what)
    elif what.allocation == "owl":
        outliers = [layer_outliers(decoder, index, seen) for index, seen in enumerate(statistics)]
        patterns = allocate(decoder, outliers, what)
    if what.method != "auto":
        return _Prepared(fitted_ST, statistics, patterns, [what.score] * len(decoder), None)
    of_layer = statistics.__getitem__ if what.propagation == "dense" else None
    with TemporaryDirectory(prefix="dass-auto-") as folder:
        search = Search(
            decoder, fitted_ST, held_back_WT, what, patterns, Path(folder), statistics=of_layer, buffering=buffering
        )
        choice = search.choose()
    return _Prepared(fitted_ST, statistics, patterns, choice.scores, choice)


def _layers(decoder: Decoder, prepared: _Prepared, what: Plan, buffering: Buffering) -> Iterator[LayerResult]:
    """Prune a model in memory, layer by layer."""
    patterns, scores = prepared.patterns, prepared.scores
    if what.propagation == "dense":
        for index, seen in enumerate(prepared.statistics):
            result = prune_from_statistics(decoder, index, seen, what, patterns[index], scores[index])
            prefix = f"{decoder.layer_name(index)}."
            write_parameters(decoder.structure(index), result.keep, result.weights, prefix)
            yield result
        return
    pruner = LayerwisePruner(decoder, prepared.fitted_ST, what, patterns=patterns, scores=scores, buffering=buffering)
    with closing(pruner):
        for index in range(len(decoder)):
            yield pruner.prune_layer(index)


def prune_checkpoint(
    folder_in: Path | str,
    folder_out: Path | str,
    input_ids: Tokens,
    method: str = "dass",
    sparsity: float | None = None,
    pattern: str = "unstructured",
    alpha: float = DEFAULT_ALPHA,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    batch_tokens: int | None = None,
    hidden_states: Place = "auto",
    work: Path | str | None = None,
    checkpoint_every: int | None = None,
    on_layer: Callable[[LayerReport], None] | None = None,
    progress: bool = False,
    masks: Path | str | None = None,
    overwrite: bool = False,
    **options: Unpack[PlanOptions],
) -> CheckpointReport:
    """Prune a checkpoint on disk into another folder. Never more than one layer of the model is in memory.

    Output files mirror the input's: the same shards, names and order, and outside the MLPs the same bytes. Config,
    tokenizer and licence come along, the model card as BASE_README.md; to a config that transformers 5 saved come the
    keys that older ones read. What is not part of the checkpoint that is read stays behind, with a warning.
    `folder_out` is complete or absent.

    Args:
        folder_in: a transformers checkpoint folder with safetensors, in one file or in shards.
        folder_out: where to write. A folder that exists must be empty or an earlier output of this function that
            nobody has touched since; it is then replaced.
        input_ids, method, sparsity, pattern, alpha, batch_tokens, hidden_states, on_layer, progress, options: as for
            `prune`.
        device: where layers compute.
        dtype: type to compute in; None takes the checkpoint's. What is stored keeps its type.
        work: where finished layers are kept. A run that died goes on behind them when it is started again with the same
            folder and arguments, and ends in the same bytes. None: a temporary folder beside `folder_out`.
        checkpoint_every: also keep hidden states behind every so many layers, so that finished layers need no replay.
        masks: a folder to keep the masks in, for `apply_masks`: masks.safetensors, its header with the layers' reports.
            It is replaced as `folder_out` is.
        overwrite: also replace an earlier output some of whose files were changed since. What this function did not
            make is never removed.

    Raises:
        InputError: a value or a checkpoint that cannot be used; `folder_out` holds what this function did not make,
            holds the input or `work`, or lies inside the input. Nothing was written.
        NumericalError: NaN or infinite activations; finished layers are in `work`.

    Example:
        >>> dass.prune_checkpoint("llama", "llama-2-4", input_ids, pattern="2:4", work="llama-2-4.work")
    """
    folder_in, folder_out = check_path("folder_in", folder_in), check_path("folder_out", folder_out)
    work = None if work is None else check_path("work", work)
    masks = None if masks is None else check_path("masks", masks)
    check_flag("overwrite", overwrite)
    check_flag("progress", progress)
    _check_places(folder_in, folder_out, work, masks, overwrite)
    what = plan(method, sparsity, pattern, alpha, **options)
    input_ids = windows_of(input_ids)
    check_callback(on_layer)
    Buffering(batch_tokens, hidden_states)
    decoder = StreamedDecoder(folder_in, check_device(device), check_dtype(dtype))
    check_fits(decoder, what)
    check_windows(decoder, input_ids)
    what.check_samples(len(input_ids))
    base = Checkpoint(folder_in)
    folder_out.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder_out.parent, folder_out.name)
    temporary = (
        None
        if work is not None
        else Path(mkdtemp(prefix=f".{folder_out.name}.", suffix=f".{os.getpid()}.partial", dir=folder_out.parent))
    )
    folder = temporary or Path(work or "") / _fingerprint(base, input_ids, what, decoder, batch_tokens)
    buffering = Buffering(batch_tokens, hidden_states, folder)
    layers: list[LayerReport] = []
    try:
        run = CheckpointRun(decoder, input_ids, what, folder, buffering=buffering, checkpoint_every=checkpoint_every)
        with closing(run), layer_bar(run.layer_count, progress) as one_more:
            choice = run.choice
            for index in range(run.layer_count):
                record = run.layer(index)
                layers.append(record.report)
                one_more()
                if on_layer is not None:
                    on_layer(record.report)
        if masks is not None:
            _keep_masks(run, what, masks, history(folder_in), overwrite)
        with complete_folder(folder_out) as writing:
            found = apply_to_checkpoint(
                base,
                run.masks,
                writing,
                run.updates,
                tuned=run.updates.tuned(run.masks),
                settings=what.named,
                history=history(folder_in),
            )
            check_replaceable(folder_out, overwrite)  # once more: hours have passed
            shares = removed_shares(run.masks, base)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    for line in (found.told(folder_in), told(folder_in, history(folder_in))):
        if line is not None:
            warnings.warn(line, stacklevel=2)
    return CheckpointReport(layers, run.finished, found.left, shares["mlp"], choice)


def _keep_masks(run: CheckpointRun, what: Plan, masks: Path, before: Mapping[str, Any] | None, overwrite: bool) -> None:
    reports = [{name: value for name, value in asdict(each).items() if name != "seconds"} for each in run.reports()]
    with complete_folder(masks) as writing:
        save_masks(run.masks, writing / MASKS, {"layers": canonical_json(reports)})
        write_record(writing, {MASKS: sha256_file(writing / MASKS)}, what.named, before)
        check_replaceable(masks, overwrite)  # once more: hours have passed


def _check_places(folder_in: Path, folder_out: Path, work: Path | None, masks: Path | None, overwrite: bool) -> None:
    check_place(folder_out, {"the input": folder_in})
    if work is not None:
        check_written_into(work)
        for other, how in ((folder_out, "the output"), (folder_in, "the input")):
            if lies_in(work, other):
                raise InputError(f"work is {work}, in {how} {other}: nothing was changed. Name a folder beside it.")
    check_replaceable(folder_out, overwrite)
    if masks is not None:
        check_place(
            masks, {"the input": folder_in, "the output": folder_out} | ({} if work is None else {"work": work})
        )
        check_replaceable(masks, overwrite)


def _fingerprint(
    base: Checkpoint, input_ids_ST: Tensor, what: Plan, decoder: StreamedDecoder, batch_tokens: int | None
) -> str:
    """Digest of everything the result depends on; reads the whole checkpoint once."""
    return digest_of(
        {
            "base": {file: sha256_file(base.folder / file) for file in ["config.json", *base.files]},
            "input_ids": [list(input_ids_ST.shape), hashlib.sha256(input_ids_ST.long().cpu().numpy().data).hexdigest()],
            "plan": what.fields,
            "engine": [ENGINE_VERSION, decoder.device.type, str(decoder.dtype), batch_tokens],
        }
    )
