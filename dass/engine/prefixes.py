"""Hidden states in front of layers that `auto` may change, so that what lies before a change is not computed again."""

import shutil
from pathlib import Path
from typing import Self

import torch

from dass.engine.judge import HeldBack
from dass.engine.pruner import LayerwisePruner
from dass.engine.ranks import Ranks

_ROOM = 0.1
"""Of the free disk, what the hidden states in front of one layer may take."""


class Prefixes:
    """Hidden states in front of layers that may be changed: what lies before a change is not computed again.

    They are kept as long as this is open, where the disk has room, and never where layers hand on more than hidden
    states. Each rank has its own.
    """

    def __init__(self, folder: Path, wanted: set[int], ranks: Ranks, device: torch.device) -> None:
        self._folder, self._wanted, self._ranks, self._device = folder, wanted, ranks, device
        self._layers: list[int] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def resume(self, pruner: LayerwisePruner | None, windows: HeldBack, layer: int) -> int:
        """Load what lies nearest in front of `layer`; returns the layer that is due then."""
        start = max((each for each in self._layers if each <= layer), default=0)
        if start:
            windows.resume_at(start, self._file("held_back", start))
            if pruner is not None:
                pruner.resume_at(start, self._file("fitted", start))
        return start

    def keep(self, pruner: LayerwisePruner | None, windows: HeldBack, layer: int) -> None:
        """Save what enters `layer`, the due one, if a change is to be tried there."""
        if (
            layer == 0
            or layer not in self._wanted
            or layer in self._layers
            or windows.carries_state
            or not self._has_room(pruner, windows)
        ):
            return
        windows.save(self._file("held_back", layer))
        if pruner is not None:
            pruner.save_hidden(self._file("fitted", layer))
        self._layers.append(layer)

    def drop_behind(self, layer: int) -> None:
        """`layer` is another now, and what follows it too."""
        for each in [each for each in self._layers if each > layer]:
            self._layers.remove(each)
            for what in ("held_back", "fitted", "dense_fitted"):
                self._file(what, each).unlink(missing_ok=True)

    def _has_room(self, pruner: LayerwisePruner | None, windows: HeldBack) -> bool:
        needed = windows.nbytes + (0 if pruner is None else pruner.hidden_bytes)
        fits = needed <= _ROOM * shutil.disk_usage(self._folder).free
        return self._ranks.of_first(float(fits), self._device) == 1.0  # all ranks do the same

    def _file(self, what: str, layer: int) -> Path:
        return self._folder / f"{what}_{layer:03d}_{self._ranks.rank}.safetensors"

    def _clear(self) -> None:
        for path in self._folder.glob(f"*_{self._ranks.rank}.safetensors"):
            path.unlink()
