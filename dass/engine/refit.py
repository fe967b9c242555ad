"""New values for the weights of a layer's MLPs that stay, from the tokens that the layer is given.

Each matrix has a closed form: gate and up first, then down behind them. `reconstruct-mlp` then trains all three of an
MLP together. Windows that are held back are fitted by neither; they choose between the results.

Axes: N tokens, H hidden, I intermediate, C in_features and O out_features of one matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dass.engine.layerwise import LayerwisePass
from dass.engine.ranks import Ranks
from dass.method.fit_error import FitError, FitErrors
from dass.method.gram import GramSum, gram
from dass.method.methods import Projection
from dass.method.mlp import PrunedMlp, refit_down, refit_inputs
from dass.method.plan import Plan
from dass.method.reconstruct import Equations
from dass.method.reconstruct_mlp import refit_mlp
from dass.method.statistics import MlpStatistics
from dass.model.layer import LayerRunner

REFIT_TOKENS = 65536
"""`reconstruct-mlp` trains on the first tokens an MLP is given, up to this many, and stops by as many held back."""


def refit_mlps(
    walk: LayerwisePass,
    runner: LayerRunner,
    dense: Sequence[dict[Projection, Tensor]],
    pruned: Sequence[PrunedMlp],
    statistics: Sequence[MlpStatistics],
    plan: Plan,
) -> tuple[list[PrunedMlp], FitErrors]:
    """Re-fit every MLP of a layer to what it puts out when dense: the MLPs, and how far from it their outputs are.

    An expert that saw too few tokens to be judged by saw too few to be fitted to: it keeps its values.

    Args:
        walk: holds the layer's states; whose windows are held back.
        runner: the layer, still dense.
        dense: stored weights of each MLP.
        pruned: their masks, and the values to start from.
        statistics: of each MLP, with XᵀX where no window is held back.
        plan: damping, and whether the three matrices are trained together.
    """
    pruned, chosen = list(pruned), [which for which, seen in enumerate(statistics) if not seen.starved]
    judged, train = walk.holds_back, plan.update == "reconstruct-mlp"
    inputs = _inputs(walk, runner, chosen, held_back=False) if judged else _of_all(chosen, statistics)
    judges = _inputs(walk, runner, chosen, held_back=True) if judged else {}
    for which in chosen:
        pruned[which] = refit_inputs(pruned[which], dense[which], inputs.pop(which), plan, judges.pop(which, None))
    fitted = _Outputs(walk, runner, chosen, dense, pruned, train, held_back=False)
    held_back = _Outputs(walk, runner, chosen, dense, pruned, train, held_back=True) if judged else None
    errors = FitErrors()
    for which in chosen:
        fit = fitted.down.merged(which, walk.ranks)
        judge = None if held_back is None else held_back.down.merged(which, walk.ranks)
        pruned[which] = refit_down(pruned[which], dense[which], fit, plan, judge)
        if train and (tokens := fitted.samples[which].tensors()) is not None:
            mlp = pruned[which]
            together = refit_mlp(
                mlp.weights,
                mlp.keep,
                *tokens,
                runner.mlps[which].activation,
                held_back=None if held_back is None else held_back.samples[which].tensors(),
            )
            pruned[which] = mlp.with_weights(together.weights)
            errors += together.errors
        else:
            whole = dense[which]["down_proj"]
            down = pruned[which].weights.get("down_proj", whole), whole
            errors += FitErrors(
                FitError(fit.squared_error(*down), fit.power),
                FitError() if judge is None else FitError(judge.squared_error(*down), judge.power),
            )
    return pruned, errors


class _Sums:
    """XᵀX and YᵀX of some matrices, one an MLP, in float64."""

    def __init__(self, shapes: dict[int, tuple[int, int]], device: torch.device, *, moments: bool) -> None:
        """`shapes`: MLP -> (O, C)."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._gram = {which: GramSum(shape[1], device) for which, shape in shapes.items()}
        self._moment_OC = {which: zeros(*shape) for which, shape in shapes.items() if moments}
        self._scalars = {which: zeros(2) for which in shapes}  # tokens, ‖Y‖²

    def add(self, which: int, x: Tensor, y: Tensor | None = None) -> None:
        self._gram[which].add(x)
        self._scalars[which][0] += x.shape[:-1].numel()
        if y is not None:
            self._moment_OC[which] += gram(x, y)
            self._scalars[which][1] += y.double().square().sum()

    def merged(self, which: int, ranks: Ranks) -> Equations:
        """What all ranks have seen of one MLP's matrix; it is given away."""
        gram_sum, moment_OC = self._gram.pop(which), self._moment_OC.pop(which, None)
        scalars = self._scalars.pop(which)
        ranks.sum_(gram_sum.total_CC, scalars, *([] if moment_OC is None else [moment_OC]))
        tokens, power = scalars.tolist()
        return Equations(int(tokens), gram_sum.result(), None if moment_OC is None else moment_OC.float(), power)


def _of_all(chosen: list[int], statistics: Sequence[MlpStatistics]) -> dict[int, Equations]:
    found = {}
    for which in chosen:
        gram_HH = statistics[which].gram_x_HH
        assert gram_HH is not None
        found[which] = Equations(statistics[which].tokens, gram_HH)
    return found


def _inputs(walk: LayerwisePass, runner: LayerRunner, chosen: list[int], *, held_back: bool) -> dict[int, Equations]:
    """Of the MLPs' inputs, in the windows that are fitted or in those held back."""
    sums = _Sums({which: runner.mlps[which].sizes for which in chosen}, walk.hidden.device, moments=False)

    def see(which: int, x: Tensor, _: Tensor) -> None:
        if which in chosen:
            sums.add(which, x)

    for _, state_BTH, call, _ in walk.batches(held_back):
        runner.observe(state_BTH, call, see)
    return {which: sums.merged(which, walk.ranks) for which in chosen}


class _Outputs:
    """What is wanted of the MLPs' outputs in the windows that are fitted, or in those held back.

    Attributes:
        down: of each down projection behind the pruned gate and up, towards the dense MLP's output.
        samples: tokens of each MLP, when it is to be trained.
    """

    def __init__(
        self,
        walk: LayerwisePass,
        runner: LayerRunner,
        chosen: list[int],
        dense: Sequence[dict[Projection, Tensor]],
        pruned: Sequence[PrunedMlp],
        train: bool,
        *,
        held_back: bool,
    ) -> None:
        sizes = {which: runner.mlps[which].sizes for which in chosen}
        shapes = {which: (hidden, intermediate) for which, (intermediate, hidden) in sizes.items()}
        self.down = _Sums(shapes, walk.hidden.device, moments=True)
        self.samples = {which: _Samples(REFIT_TOKENS) for which in chosen}

        def see(which: int, x: Tensor, z: Tensor) -> None:
            if which not in self.samples:
                return
            y = functional.linear(z.float(), dense[which]["down_proj"].float())
            self.down.add(which, runner.mlps[which].intermediate(x, {**dense[which], **pruned[which].weights}), y)
            if train:
                self.samples[which].add(x, y)

        for _, state_BTH, call, _ in walk.batches(held_back):
            runner.observe(state_BTH, call, see)


class _Samples:
    """The first tokens an MLP is given, with the output wanted from it."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        x_NH, y_NH = x.reshape(-1, x.shape[-1])[: self._left], y.reshape(-1, y.shape[-1])[: self._left]
        self._left -= len(x_NH)
        self._x.append(x_NH.clone())
        self._y.append(y_NH.to(x.dtype))

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """x and y (N, H); None where there was no token."""
        return (torch.cat(self._x), torch.cat(self._y)) if self._x else None
