"""A program in a process of its own beside the test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[1]


@contextmanager
def beside(program: str, *arguments: str, says: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Python code that has said its first line, `says`. It can be written to, and is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{says}\n"
        yield process
    finally:
        process.kill()
        process.communicate()
