"""Statistics once, many masks: one pass through the dense model serves every method, pattern, sparsity and alpha.

With `propagation: dense` a layer's statistics come from dense predecessors, so they depend on model and tokens only.
The same pass tells which layers hold outliers, which is what the `owl` allocation asks.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dass.engine.layer_report import LayerResult, layer_report
from dass.engine.layerwise import Buffering, LayerwisePass, Wanted
from dass.engine.made import Made, joined
from dass.engine.ranks import ALONE, Ranks
from dass.errors import InputError
from dass.files import complete_file
from dass.method.allocation import outlier_ratio, owl_patterns
from dass.method.fit_error import FitErrors
from dass.method.methods import Score
from dass.method.mlp import prune_mlp, refit_down, refit_inputs
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.method.reconstruct import Equations
from dass.method.score import ActivationNorms, importance
from dass.method.statistics import MlpStatistics
from dass.model.decoder import Decoder
from dass.model.glu import GluMlp, find_glus, parameters_of

LayerStatistics = Mapping[str, MlpStatistics]
"""Statistics of a layer's MLPs by full name ("model.layers.0.mlp")."""

_HEADER = "dass"
_PARTS = ("norm_x", "norm_z", "gram_x", "gram_z")


def dense_statistics(
    decoder: Decoder,
    input_ids_ST: Tensor,
    wanted: Wanted,
    *,
    buffering: Buffering | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[dict[str, MlpStatistics]]:
    """One forward through the dense model: the statistics of each layer in turn.

    Args:
        decoder: the model. Not changed.
        input_ids_ST: calibration tokens, LongTensor (samples, length).
        wanted: with or without Gram matrices.
        buffering: how hidden states are held.
        ranks: the processes that share the windows.

    Raises:
        InputError: tokens of a wrong shape or type, or a layer without a GLU MLP.
        NumericalError: activations are NaN or infinite.
    """
    walk = LayerwisePass(decoder, input_ids_ST, buffering, ranks)
    with walk.hidden:
        for index in range(len(decoder)):
            with torch.no_grad(), decoder.layer(index) as layer:
                runner = walk.runner(layer)
                collected = walk.collect(runner, wanted, advance=not walk.is_last)
            walk.layer += 1
            named = zip(runner.mlps, collected.statistics, strict=True)
            yield {f"{decoder.layer_name(index)}.{mlp.name}": seen for mlp, seen in named}


def statistics_file(folder: Path, index: int) -> Path:
    """Where a folder of dense statistics has those of one layer."""
    return folder / f"statistics_{index:03d}.safetensors"


def are_collected(folder: Path, layers: int) -> bool:
    """Whether a folder of dense statistics has every layer's."""
    return all(statistics_file(folder, index).exists() for index in range(layers))


def collect_statistics(
    decoder: Decoder,
    input_ids_ST: Tensor,
    folders: Mapping[Path, Wanted],
    *,
    buffering: Buffering | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """One forward through the dense model for several folders of statistics, each with what is wanted there.

    The statistics are those of a pass for one folder alone, bit for bit.

    Args:
        decoder, input_ids_ST, buffering, ranks: as `dense_statistics`; rank 0 writes.
        folders: folder -> what it gets; `min_expert_tokens` is the same for all.

    Raises:
        InputError, NumericalError: as `dense_statistics`.
    """
    [least] = {wanted.min_expert_tokens for wanted in folders.values()}
    union = Wanted(_any(folders, "gram_x"), _any(folders, "gram_z"), least)
    collected = dense_statistics(decoder, input_ids_ST, union, buffering=buffering, ranks=ranks)
    for index, statistics in enumerate(collected):
        for folder, wanted in folders.items() if ranks.is_first else ():
            part = {name: _without_grams(seen, wanted) for name, seen in statistics.items()}
            save_statistics(part, statistics_file(folder, index))


def _any(folders: Mapping[Path, Wanted], what: str) -> bool:
    return any(getattr(wanted, what) for wanted in folders.values())


def _without_grams(seen: MlpStatistics, wanted: Wanted) -> MlpStatistics:
    return replace(
        seen,
        gram_x_HH=seen.gram_x_HH if wanted.gram_x else None,
        gram_z_II=seen.gram_z_II if wanted.gram_z else None,
    )


def prune_from_statistics(
    decoder: Decoder,
    index: int,
    statistics: LayerStatistics,
    plan: Plan,
    pattern: Pattern,
    score: Score | None = None,
) -> LayerResult:
    """Masks of one layer, and new values where the plan wants them, without a token.

    Args:
        decoder: the model. Not changed.
        index: the layer.
        statistics: of its MLPs.
        plan: what is asked for.
        pattern: the layer's.
        score: what its weights are chosen by; None is the plan's.

    Raises:
        InputError: statistics of another model, or without the Gram matrices that the plan needs.
    """
    plan, mlps = plan.of_layer(index), find_glus(decoder.structure(index))
    prefix = decoder.layer_name(index)
    seen = [_of(statistics, f"{prefix}.{mlp.name}", mlp.sizes, plan) for mlp in mlps]
    stored = decoder.stored_weights(index, parameters_of(mlps))
    made = _made(mlps, seen, stored, plan, pattern, plan.score if score is None else score)
    return LayerResult(
        layer_report(index, pattern if plan.only else None, mlps, made, seen, next(iter(stored.values())).dtype),
        dict(statistics),
        {f"{prefix}.{name}": mask for name, mask in made.keep.items()},
        {f"{prefix}.{name}": value for name, value in made.values.items()},
    )


def make_from_statistics(
    decoder: Decoder, index: int, statistics: LayerStatistics, plan: Plan, pattern: Pattern, score: Score
) -> Made:
    """What a score makes of one layer, to be tried: as `prune_from_statistics`."""
    plan, mlps = plan.of_layer(index), find_glus(decoder.structure(index))
    seen = [_of(statistics, f"{decoder.layer_name(index)}.{mlp.name}", mlp.sizes, plan) for mlp in mlps]
    return _made(mlps, seen, decoder.stored_weights(index, parameters_of(mlps)), plan, pattern, score)


def _made(
    mlps: Sequence[GluMlp],
    seen: Sequence[MlpStatistics],
    stored: Mapping[str, Tensor],
    plan: Plan,
    pattern: Pattern,
    score: Score,
) -> Made:
    what = plan.scored(score)
    pruned = []
    for mlp, each in zip(mlps, seen, strict=True):
        weights = mlp.views(stored)
        made = prune_mlp(weights, each, what, pattern)
        if what.only and what.update != "none" and not each.starved:
            assert each.gram_x_HH is not None
            assert each.gram_z_II is not None
            inputs, outputs = (Equations(each.tokens, gram_CC) for gram_CC in (each.gram_x_HH, each.gram_z_II))
            made = refit_down(refit_inputs(made, weights, inputs, what), weights, outputs, what)
        pruned.append(made)
    return Made(score, pruned, *joined(mlps, pruned, stored), FitErrors())


def layer_outliers(decoder: Decoder, index: int, statistics: LayerStatistics) -> float:
    """Share of a layer's Wanda scores that are outliers: what `owl` allocates by."""
    mlps = find_glus(decoder.structure(index))
    stored = decoder.stored_weights(index, parameters_of(mlps))
    prefix = decoder.layer_name(index)
    return outlier_ratio(
        importance(weight, projection, statistics[f"{prefix}.{mlp.name}"].norms, "wanda").whole()
        for mlp in mlps
        for projection, weight in mlp.views(stored).items()
    )


def allocate(decoder: Decoder, outliers: Sequence[float], plan: Plan) -> list[Pattern]:
    """Each layer's pattern under `plan.allocation`; of those that are pruned the total is what the plan's removes."""
    patterns = [plan.pattern] * len(decoder)
    if plan.allocation == "uniform":
        return patterns
    chosen = [index for index in range(len(decoder)) if plan.of_layer(index).only]
    layers = [find_glus(decoder.structure(index)) for index in chosen]
    sizes = [sum(3 * math.prod(mlp.sizes) for mlp in mlps) for mlps in layers]
    # Shares that are whole weights of every competing group are not rounded a second time.
    steps = math.gcd(*(size for mlps in layers for mlp in mlps for size in mlp.sizes))
    of_chosen = [outliers[index] for index in chosen]
    found = owl_patterns(of_chosen, sizes, plan.pattern, plan.owl_bound, steps if steps > 1 else None)
    for index, pattern in zip(chosen, found, strict=True):
        patterns[index] = pattern
    return patterns


def save_statistics(statistics: LayerStatistics, path: Path) -> None:
    """Write one layer's statistics, complete or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, seen in statistics.items():
        values = (seen.norms.x_H, seen.norms.z_I, seen.gram_x_HH, seen.gram_z_II)
        named = zip(_PARTS, values, strict=True)
        tensors |= {f"{name}.{part}": value.cpu() for part, value in named if value is not None}
    header = json.dumps({name: [seen.tokens, seen.starved] for name, seen in statistics.items()}, sort_keys=True)
    with complete_file(path) as temporary:
        save_file(tensors, temporary, {_HEADER: header})


def load_statistics(path: Path, device: torch.device) -> dict[str, MlpStatistics]:
    """Read one layer's statistics.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as handle:
            counts: dict[str, tuple[int, bool]] = json.loads(handle.metadata()[_HEADER])
            stored = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118, it is no dict
    except FileNotFoundError:
        raise InputError(f"No statistics {path}. Collect them first.") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}). Remove it and collect the statistics again.") from None
    return {
        name: MlpStatistics(
            tokens,
            ActivationNorms(stored[f"{name}.norm_x"], stored[f"{name}.norm_z"]),
            stored.get(f"{name}.gram_x"),
            stored.get(f"{name}.gram_z"),
            starved,
        )
        for name, (tokens, starved) in counts.items()
    }


def _of(statistics: LayerStatistics, name: str, sizes: tuple[int, int], plan: Plan) -> MlpStatistics:
    seen = statistics.get(name)
    if seen is None or (len(seen.norms.z_I), len(seen.norms.x_H)) != sizes:
        raise InputError(f"The statistics hold nothing of {sizes} for {name}: they are of another model.")
    if (plan.needs_gram_x and seen.gram_x_HH is None) or (plan.needs_gram_z and seen.gram_z_II is None):
        raise InputError(f"The statistics of {name} hold no Gram matrices, which this method needs: collect with them.")
    return seen
