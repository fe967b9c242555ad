"""lm_eval's prints, bars and log, kept off the terminal: what matters of them is told by us."""

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Generator
from typing import Any

_WITH_BARS = ("lm_eval.api.task", "lm_eval.models.huggingface")
_one_at_a_time = threading.RLock()  # it has one log, one standard output and one source of chance for all threads
_TRUNCATED = "exceeds model's maximum length"


class Told(logging.Handler):
    """What lm_eval's log said that a result depends on.

    Attributes:
        truncated: how many requests lost their beginning because they are longer than the model's context.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.truncated = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.truncated += _TRUNCATED in record.getMessage()


@contextlib.contextmanager
def quiet() -> Generator[Told]:
    """Around calls of lm_eval, which other threads' wait for."""
    with _one_at_a_time, _quiet() as told:
        yield told


@contextlib.contextmanager
def _quiet() -> Generator[Told]:
    from datasets import disable_progress_bars
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    disable_progress_bars()
    log, told = logging.getLogger("lm_eval"), Told()
    before, propagates = log.handlers, log.propagate
    modules: list[Any] = [sys.modules[name] for name in _WITH_BARS if name in sys.modules]
    log.handlers, log.propagate = [told], False
    for module in modules:
        module.tqdm = Silent
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield told
    finally:
        log.handlers, log.propagate = before, propagates
        for module in modules:
            module.tqdm = tqdm
