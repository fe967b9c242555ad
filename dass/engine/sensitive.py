"""`allocation: sensitivity`: less from the layers that the whole model can spare least, under one total.

Each layer is pruned alone by each share it may give up, and the whole model is judged on windows that nothing is fitted
to. The shares with the least sum of divergences then make up the total, solved exactly (`dass.method.mixed`).

W windows, T tokens.
"""

import logging
import math
from collections.abc import Callable

from torch import Tensor

from dass.engine.dense import LayerStatistics, make_from_statistics
from dass.engine.layerwise import Buffering
from dass.engine.ranks import ALONE, Ranks
from dass.engine.variants import Changed, Variant, Variants
from dass.method.allocation import shares_within
from dass.method.methods import Score
from dass.method.mixed import cheapest
from dass.method.pattern import Pattern
from dass.method.plan import Plan
from dass.model.decoder import Decoder
from dass.model.glu import find_glus

_LOG = logging.getLogger(__name__)


def sensitivities(
    decoder: Decoder,
    statistics: Callable[[int], LayerStatistics],
    held_back_WT: Tensor,
    plan: Plan,
    buffering: Buffering | None = None,
    ranks: Ranks = ALONE,
) -> list[list[float]]:
    """KL(dense ‖ pruned) in nats with one layer pruned, for each layer and each of `plan`'s patterns to choose from.

    Layers are pruned by the plan's score, where it has one that stands still, else by Wanda's. Of a layer that is
    skipped the list is empty.

    Args:
        decoder: the model. Every layer is dense again when it is left.
        statistics: gives a layer's dense statistics.
        held_back_WT: windows to judge by, LongTensor (W, T).
        plan: what is asked for.
        buffering: how hidden states are held.
        ranks: the processes; rank 0's figures count.

    Raises:
        NumericalError: a layer's pruning makes the model compute NaN or infinity.
    """
    judge = Variants(decoder, held_back_WT, buffering)
    score = Score("wanda") if plan.method in ("auto", "sparsegpt") else plan.score
    found: list[list[float]] = []
    for layer in range(len(decoder)):
        here = plan.of_layer(layer)
        if not here.only:
            found.append([])
            continue
        options = patterns_of(decoder, plan)
        moved = judge.judge([_alone(decoder, statistics, layer, plan, each, score) for each in options], first=layer)
        found.append([ranks.of_first(each.kl, decoder.device) for each in moved])
        _LOG.info(
            "sensitivity: layer %d of %d pruned alone: KL %.4g to %.4g",
            layer,
            len(decoder),
            *(found[-1][0], found[-1][-1]),
        )
    return found


def sensitive_patterns(decoder: Decoder, costs: list[list[float]], plan: Plan) -> list[Pattern]:
    """Each layer's pattern: of those that are pruned at least the plan's share goes, at the least sum of costs.

    Args:
        decoder: the model.
        costs: as `sensitivities` gives them.
        plan: what is asked for.
    """
    options = patterns_of(decoder, plan)
    chosen = [layer for layer, each in enumerate(costs) if each]
    sizes = [sum(math.prod(mlp.sizes) for mlp in find_glus(decoder.structure(layer))) for layer in chosen]
    found = cheapest(
        [costs[layer] for layer in chosen],
        [[size * each.sparsity for each in options] for size in sizes],
        plan.pattern.sparsity * sum(sizes),
    )
    patterns = [plan.pattern] * len(decoder)
    for layer, option in zip(chosen, found, strict=True):
        patterns[layer] = options[option]
    return patterns


def patterns_of(decoder: Decoder, plan: Plan) -> list[Pattern]:
    """What any layer may be pruned at, those that remove least first."""
    mlps = [mlp for layer in range(len(decoder)) for mlp in find_glus(decoder.structure(layer))]
    steps = math.gcd(*(size for mlp in mlps for size in mlp.sizes))
    return shares_within(plan.pattern, plan.owl_bound, steps)


def _alone(
    decoder: Decoder,
    statistics: Callable[[int], LayerStatistics],
    layer: int,
    plan: Plan,
    pattern: Pattern,
    score: Score,
) -> Variant:
    # What is judged is the choice of weights: a re-fit or swaps of every option would cost a whole run each.
    what = plan.masks_only.scored(score)

    def change(index: int) -> Changed | None:
        if index != layer:
            return None
        made = make_from_statistics(decoder, index, statistics(index), what, pattern, score)
        return Changed(made.keep, made.values)

    return change
