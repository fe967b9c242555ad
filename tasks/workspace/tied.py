"""Child processes that end when whoever started them does, even by kill -9.

As a program, `python -P tied.py PID MODULE ARGUMENTS...` is `python -m MODULE ARGUMENTS...`, tied to process PID. It
imports nothing of this package, so that it runs in any folder.
"""

import os
import runpy
import signal
import sys
import threading
import time

import psutil

_POLL_SECONDS = 0.25


def tied(module: str, *arguments: str) -> list[str]:
    """The command that runs a Python module for as long as this process lives."""
    return [sys.executable, "-P", __file__, str(os.getpid()), module, *arguments]


def end_with(pid: int) -> None:
    """Kill this process as soon as process `pid` has ended."""
    # Not Linux's PR_SET_PDEATHSIG: it also strikes when only the thread that started us ends.
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        _end()
    threading.Thread(target=_watch, args=(process,), name=f"ends with {pid}", daemon=True).start()


def _watch(process: psutil.Process) -> None:
    while _lives(process):
        time.sleep(_POLL_SECONDS)
    _end()


def _lives(process: psutil.Process) -> bool:
    try:  # one that its own parent has not collected yet is a zombie
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
