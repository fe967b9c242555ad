"""Runs of `dass.prune_checkpoint` in processes of their own, which may be killed, without seconds of imports for each.

`python -m tests.forked` imports once, then forks for every line on its standard input: a request as JSON. It answers
with a line: how the process ended. `Forked` is the other end. One thread: OpenMP's do not survive a fork.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        base, out, work: folders; an empty `work` is none.
        samples, length: of the calibration windows.
        options: further arguments of `prune_checkpoint`.
        pause: seconds to sleep behind every layer.
        kill_after: seconds until SIGKILL; None waits.
    """

    base: str
    out: str
    work: str = ""
    samples: int = 4
    length: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    pause: float = 0.0
    kill_after: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (negative: the signal), its seconds, its peak resident memory in KiB."""

    status: int
    seconds: float
    peak: int


class Forked:
    """The process that forks."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.forked"]
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def run(self, request: Request) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asdict(request)) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def _serve() -> None:
    import torch

    import dass
    from tests.models import tiny_model, tiny_tokens

    torch.set_num_threads(1)
    dass.prune(tiny_model(), tiny_tokens())  # imports whatever is imported late
    for line in sys.stdin:
        request = Request(**json.loads(line))
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _prune(request)
        timer = threading.Timer(request.kill_after or 1e6, os.kill, (child, signal.SIGKILL))
        if request.kill_after is not None:
            timer.start()
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        timer.cancel()
        if timer.is_alive():
            timer.join()  # before the process's number can be another's
        _, status, usage = os.wait4(child, 0)
        ended = Ended(os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss)
        sys.stdout.write(json.dumps(asdict(ended)) + "\n")
        sys.stdout.flush()


def _prune(request: Request) -> NoReturn:
    import dass
    from tests.models import tiny_tokens

    try:
        tokens = tiny_tokens(request.samples, request.length)
        pause = functools.partial(time.sleep, request.pause)
        dass.prune_checkpoint(
            request.base,
            request.out,
            tokens,
            work=request.work or None,
            on_layer=lambda _: pause(),
            **request.options,
        )
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
