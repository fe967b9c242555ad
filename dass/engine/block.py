"""Re-fitting what follows a layer's attention, once its masks are fixed, to what the dense model has behind the layer.

Inputs come from the pruned path, the target from the dense one: the layer also makes up for what those in front of it
lost, which no fit to its own MLP's output can. Attention stays as it is, so gradients go through the MLP half alone.

Each token's error counts relative to its own hidden state, as the next layer's norm will see it: a few tokens have
states a thousand times as large as all others.

Axes: S windows, B windows of a batch, T tokens, H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dass.engine.layerwise import LayerwisePass
from dass.errors import NumericalError
from dass.method.descent import Batches, descend
from dass.method.fit_error import FitError, FitErrors
from dass.model.layer import LayerRunner

BATCH_TOKENS = 1024
"""Tokens a step, all ranks together; at least one window."""
LEARNING_RATE = 0.02
"""As `descend` takes it."""
PATIENCE = 2
"""Epochs without a better error on the windows held back, after which training stops."""


@dataclass(frozen=True)
class BlockRefit:
    """A re-fitted layer.

    Attributes:
        values: of the parameters that were trained, in the types they came in.
        errors: of the layer's output: the root mean square over tokens of ‖y − ŷ‖ / ‖y‖.
    """

    values: dict[str, Tensor]
    errors: FitErrors


def refit_block(
    walk: LayerwisePass,
    dense: LayerwisePass,
    runner: LayerRunner,
    start: Mapping[str, Tensor],
    moves: Mapping[str, Tensor],
    epochs: int,
    *,
    seed: int = 0,
) -> BlockRefit:
    """Train parameters of a layer's MLP half: the best seen after any epoch, the start included.

    Deterministic: the same inputs give the same bytes on one kind of device with one number of threads and of ranks.
    The layer is left as it was.

    Args:
        walk: holds mid_BTH of the pruned path. Its windows held back, or else all, say which values are best.
        dense: holds the dense path's outputs of this layer, for the same windows.
        runner: the layer, which splits.
        start: parameter name inside the layer -> values to start from, in the type that is stored.
        moves: parameter name -> bool, True where a value is trained.
        epochs: how often every fitted window is used.

    Raises:
        NumericalError: the dense path's outputs are NaN or infinite.
    """
    half = _MlpHalf(walk, dense, runner, list(start))
    batch = max(1, BATCH_TOKENS // walk.hidden.shape[1])
    batches = Batches(walk.fitted, batch, seed)
    a_step = min(batch, walk.fitted)
    steps = max(1, epochs * walk.fitted // a_step)

    with _trainable(runner.layer, list(start)):
        done = descend(
            start,
            moves,
            lambda masters: half.gradients(masters, next(batches)),
            lambda values: half.error(values, held_back=walk.holds_back).squared,
            steps=steps,
            every=max(1, steps // epochs),
            learning_rate=LEARNING_RATE,
            patience=PATIENCE if walk.holds_back else None,
        )
        errors = FitErrors(
            half.error(done.values, held_back=False),
            half.error(done.values, held_back=True) if walk.holds_back else FitError(),
        )
    return BlockRefit(done.values, errors)


class _MlpHalf:
    """A layer's MLP half as something to train, over the windows of all ranks."""

    def __init__(self, walk: LayerwisePass, dense: LayerwisePass, runner: LayerRunner, names: Sequence[str]) -> None:
        self._walk, self._dense, self._runner = walk, dense, runner
        self._parameters = {name: runner.layer.get_parameter(name) for name in names}
        power_ST = torch.empty(walk.hidden.shape[:2], dtype=torch.float32)
        for rows, _, _, _ in walk.batches():
            power_ST[rows] = dense.hidden.read(rows).float().square().sum(dim=-1).cpu()
        if not power_ST.isfinite().all():
            raise NumericalError(
                f"{walk.decoder.layer_name(walk.layer)}: the dense model's hidden states are NaN or infinite on the "
                "calibration windows. Check the base checkpoint, or compute in a wider type (engine.dtype: float32)."
            )
        # A token without a hidden state would weigh without bound: it does not count.
        self._importance_ST = torch.where(power_ST > 0.0, power_ST.reciprocal(), 0.0)

    def gradients(self, masters: Mapping[str, Tensor], windows: Tensor) -> list[Tensor]:
        """Of the mean squared error over some windows, counted among those of all ranks.

        As many windows at once as anywhere in the pass; their gradients are added up. A checkpoint of the half would
        save nothing: it is the whole graph, and would be there at once when it is computed again.
        """
        self._put(masters)
        totals = [torch.zeros_like(master) for master in masters.values()]
        mine = self._walk.windows
        rows = [window - mine.start for window in windows.tolist() if mine.start <= window < mine.stop]
        for first in range(0, len(rows), self._walk.at_once):
            some = rows[first : first + self._walk.at_once]
            mid_BTH, target_BTH = (
                torch.cat([each.hidden.read(slice(row, row + 1)) for row in some]) for each in (self._walk, self._dense)
            )
            with torch.enable_grad():
                squared = self._squared_error(mid_BTH, target_BTH, self._importance_ST[some])
                loss = squared / (len(windows) * mid_BTH.shape[1])
                # Experts that no token was sent to have no part in it.
                found = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    total += gradient
        self._walk.ranks.sum_(*totals)
        return totals

    @torch.no_grad()
    def error(self, values: Mapping[str, Tensor], *, held_back: bool) -> FitError:
        """Over the windows that are fitted, or those held back, of all ranks."""
        self._put(values)
        sums = torch.zeros(2, dtype=torch.float64, device=self._walk.hidden.device)
        for rows, mid_BTH, _, _ in self._walk.batches(held_back):
            importance_BT = self._importance_ST[rows]
            sums[0] += self._squared_error(mid_BTH, self._dense.hidden.read(rows), importance_BT).double()
            sums[1] += importance_BT.count_nonzero()
        self._walk.ranks.sum_(sums)
        squared, tokens = sums.tolist()
        return FitError(squared, tokens)

    def _squared_error(self, mid_BTH: Tensor, target_BTH: Tensor, importance_BT: Tensor) -> Tensor:
        error_BTH = self._runner.mlp_half(mid_BTH).float() - target_BTH.float()
        return (error_BTH.square().sum(dim=-1) * importance_BT.to(error_BTH.device)).sum()

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


@contextmanager
def _trainable(layer: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """These parameters of a layer take gradients, the others do not; afterwards each does, and is, as before."""
    before = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    values = [(layer.get_parameter(name), layer.get_parameter(name).detach().clone()) for name in names]
    try:
        layer.requires_grad_(requires_grad=False)
        for name in names:
            layer.get_parameter(name).requires_grad_()
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
