"""Stage `recover`, from start to end."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dass.files import complete_folder, write_json
from tasks.pruning.recovered import NOT_TRAINED, RECOVERY
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import TimeLeft, progress_bar
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
    shown, time_left = 0, TimeLeft(steps)

    def tell(entry: dict[str, Any]) -> None:
        nonlocal shown
        step = entry["step"]
        advance(step - shown)
        shown = step
        left = time_left.told(step)
        if "held_back" in entry:
            told = [f"loss {entry['loss']:.4f}"] if "loss" in entry else []
            told += [f"held back {entry['held_back']:.4f}", *([left] if left else [])]
            logger.info("recover: step %d of %d, %s", step, steps, ", ".join(told))
        if on_step is not None:
            on_step(entry)

    return tell
