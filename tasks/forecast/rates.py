"""How fast this machine is: what earlier runs took, kept for this user, and a quick look where there was none.

What is kept is bounded, and losing it loses nothing: the next run says it again.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dass.files import complete_file
from tasks.forecast.effort import Effort
from tasks.sources.downloads import cache_folder
from tasks.workspace.settings import Settings

_NOMINAL = 100e9  # operations a second that "reckoned" stands for
_ON_CUDA = 30e12
_MOVED = 400e6  # bytes a second
_OF_PEAK = 0.6  # what a model's products reach of what one large product does
_KEPT = 8  # of one kind
_LIKE = 30.0  # how many times larger or smaller something may be that says how long this takes


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
        parts += [prune.method, prune.update, prune.refine, prune.allocation, prune.propagation, str(engine.processes)]
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
        kept[kind] = [*kept.get(kind, []), {**asdict(effort), "took": round(seconds, 3)}][-_KEPT:]
        path = _file()
        with complete_file(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")


class Machine:
    """What is known of this machine's speed."""

    def __init__(self) -> None:
        self._kept = _read()
        self._rate: float | None = None

    def seconds(self, kind: str, effort: Effort) -> float:
        """How long a stage takes here: as long as one like it took, else by the machine's speed."""
        reckoned = _reckoned(effort)
        like = [
            (max(reckoned / of, of / reckoned), -position, each["took"] / of)
            for position, each in enumerate(self._kept.get(kind, []))
            if (of := _reckoned(Effort(each["seconds"], each["operations"], each["moved"]))) > 0
        ]
        near = min(like, default=None)
        if near is not None and near[0] <= _LIKE:
            return reckoned * float(near[2])
        return effort.seconds + effort.operations / self._speed(kind) + effort.moved / _MOVED

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


def _product_rate() -> float:
    """Operations a second of a float32 product of numpy's: no torch is imported for it."""
    import numpy as np

    square = np.ones((1024, 1024), dtype=np.float32)
    square @ square
    best = float("inf")
    for _ in range(3):
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
