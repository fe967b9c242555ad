"""How fast this machine is: what earlier runs took, kept for this user, and a quick look where there was none.

What is kept is bounded, and losing it loses nothing: the next run says it again.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median_low
from typing import Any

from dass.files import complete_file
from tasks.forecast.effort import Effort
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.settings import Settings

_NOMINAL = 100e9  # operations a second that "reckoned" stands for
_ON_CUDA = 30e12
_MOVED = 400e6  # bytes a second
_OF_PEAK = 0.6  # what a model's products reach of what one large product does
_KEPT = 8  # of one kind and size
_SIZES = 5  # of one kind
_ALIKE = 3.0  # how many times larger one of two may be that are of one size
_LIKE = 10.0  # how many times larger or smaller something may be that says how long this takes


def device_of(settings: Settings) -> str:
    """cpu or cuda, without asking torch: it takes seconds."""
    device = settings.engine.device
    if device == "auto":
        return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
    return device.partition(":")[0]


def kind_of(stage: str, settings: Settings) -> str:
    """What decides how fast a stage is, besides its size: equal kinds are compared."""
    engine = settings.engine
    parts = [stage, device_of(settings), engine.dtype]
    if stage == "prune":
        prune = settings.prune
        parts += [prune.method, prune.update, prune.refine, prune.allocation, prune.propagation, str(engine.ranks)]
        parts.append("N:M" if ":" in prune.pattern else prune.pattern)
    elif stage == "recover":
        parts.append("off" if not settings.recover.steps else f"{settings.recover.train} {settings.recover.teacher}")
    elif stage == "calibration":
        parts.append(settings.calibration.source)
    elif stage == "register":
        parts.append(settings.register_.artifact)
    return " ".join(parts)


def note(kind: str, effort: Effort, seconds: float) -> None:
    """Keep what a stage took."""
    with suppress(OSError, ValueError):
        kept = _read()
        before = kept.get(kind, [])
        alike = [each for each in before if _apart(_effort(each), effort) <= _ALIKE]
        if len(alike) >= _KEPT:
            before.remove(alike[0])
        kept[kind] = [*before, {**asdict(effort), "took": round(seconds, 3)}][-_KEPT * _SIZES :]
        path = _file()
        with complete_file(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")


class Machine:
    """What is known of this machine's speed."""

    def __init__(self) -> None:
        self._kept = _read()
        self._rate: float | None = None

    def seconds(self, kind: str, effort: Effort) -> float:
        """How long a stage takes here, by the median of those of its size, else by the machine's speed. So an hour in
        which the machine was busy with something else does not count."""
        kept = [(_apart(_effort(each), effort), each["took"] / _reckoned(_effort(each))) for each in self._of(kind)]
        nearest = min((apart for apart, _ in kept), default=_LIKE + 1)
        if nearest <= _LIKE:
            return _reckoned(effort) * median_low(rate for apart, rate in kept if apart <= _ALIKE * nearest)
        return effort.seconds + effort.operations / self._speed(kind) + effort.moved / _MOVED

    def _of(self, kind: str) -> list[dict[str, float]]:
        return [each for each in self._kept.get(kind, []) if _reckoned(_effort(each)) > 0]

    def knows(self, kind: str) -> bool:
        """Whether a run of this kind was seen."""
        return bool(self._kept.get(kind))

    def _speed(self, kind: str) -> float:
        if " cuda " in kind:
            return _ON_CUDA
        if self._rate is None:
            self._rate = _OF_PEAK * _product_rate()
        return self._rate


def _reckoned(effort: Effort) -> float:
    return effort.seconds + effort.operations / _NOMINAL + effort.moved / _MOVED


def _effort(kept: dict[str, float]) -> Effort:
    return Effort(kept["seconds"], kept["operations"], kept["moved"])


def _apart(one: Effort, other: Effort) -> float:
    """How many times larger one is than the other, 1 or more."""
    pair = sorted((_reckoned(one), _reckoned(other)))
    return pair[1] / pair[0] if pair[0] > 0 else float("inf")


def _product_rate() -> float:
    """Operations a second of a float32 product of numpy's: no torch is imported for it."""
    import numpy as np

    square = np.ones((1024, 1024), dtype=np.float32)
    square @ square
    best = float("inf")
    for _ in range(10):  # something else may be at work
        begin = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - begin)
    return 2 * 1024**3 / best


def _file() -> Path:
    return cache_folder() / "rates.json"


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        kept = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return kept
    return {}
