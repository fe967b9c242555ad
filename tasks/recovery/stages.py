"""Stage `recover`, from start to end."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dass.files import complete_folder, write_json
from tasks.pruning.recovered import NOT_TRAINED, RECOVERY
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("dass")


def recover(
    workspace: Workspace,
    settings: Settings,
    on_step: Callable[[dict[str, Any]], object] | None = None,
    windows: "Tensor | None" = None,
) -> None:
    """Stage `recover`: artifacts/base and artifacts/masks to artifacts/recovered.

    With `recover.steps: 0` that holds the record only, which says that nothing was trained. Under torchrun every
    process does its share, and rank 0 writes.

    Args:
        workspace: where.
        settings: sections `recover` and `engine`; `calibration` where windows are drawn.
        on_step: called with each step's figures as it is done.
        windows: drawn before, where they need not be drawn again.

    Raises:
        InputError, NumericalError, ProcessesError: as in `RecoveryRun`.
    """
    if not settings.recover.steps:
        with complete_folder(workspace.recovered) as folder:
            write_json(folder / RECOVERY, NOT_TRAINED)
        return
    from dass.engine.ranks import joined_ranks  # here: torch takes seconds, and most runs recover nothing
    from tasks.recovery.run import RecoveryRun

    with joined_ranks() as ranks:
        run = RecoveryRun(workspace, settings, ranks, windows)
        if not ranks.is_first:
            run.train(lambda _: None)
            return
        with progress_bar(run.steps, "recover", "steps") as advance:
            run.train(_teller(run.steps, advance, on_step))
        run.finish(workspace.recovered)
        run.discard()


def _teller(
    steps: int, advance: Callable[[int], None], on_step: Callable[[dict[str, Any]], object] | None
) -> Callable[[dict[str, Any]], None]:
    """Moves the bar, and says at each look how far and how good it is, and how long it will take."""
    shown, first, began = 0, 0, time.monotonic()

    def tell(entry: dict[str, Any]) -> None:
        nonlocal shown, first, began
        step = entry["step"]
        if shown == 0 and step != 1:  # of a run that goes on, the steps before are done
            first, began = step, time.monotonic()
        advance(step - shown)
        shown = step
        if "held_back" in entry:
            told = f"held back {entry['held_back']:.4f}"
            if "loss" in entry:
                told = f"loss {entry['loss']:.4f}, {told}"
            if step > first:
                left = (time.monotonic() - began) / (step - first) * (steps - step)
                told += f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
            logger.info("recover: step %d of %d, %s", step, steps, told)
        if on_step is not None:
            on_step(entry)

    return tell
