"""A shell in a terminal of its own, typed into as a person would."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

CTRL_C = "\x03"
_PROMPT = re.compile(r"\[(\d+)\]> ")


class Terminal:
    """An interactive shell.

    Attributes:
        shown: everything that came so far.
    """

    def __init__(self, keyboard: int) -> None:
        self._keyboard = keyboard
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def foreground(self) -> int:
        """The process group that works; its leader is the command that was typed."""
        return os.tcgetpgrp(self._keyboard)

    def prompt(self, seconds: float) -> int:
        """Wait for the prompt. Returns the exit status of what was typed before."""
        begin, deadline = len(self.shown), time.monotonic() + seconds
        while not (found := _PROMPT.search(self.shown, begin)):
            assert time.monotonic() < deadline, f"no prompt within {seconds} s:\n{self.shown}"
            self.read(0.1)
        return int(found[1])

    def read(self, seconds: float) -> None:
        """Take what comes within `seconds`."""
        if select.select([self._keyboard], [], [], seconds)[0]:
            self.shown += os.read(self._keyboard, 65536).decode(errors="replace")

    def close(self) -> None:
        """As a window is closed."""
        os.close(self._keyboard)
        self._keyboard = -1

    @property
    def is_open(self) -> bool:
        return self._keyboard >= 0


@contextmanager
def terminal(folder: Path, environment: Mapping[str, str]) -> Generator[Terminal]:
    """A terminal with bash at its prompt. Skips the test where there is none."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    keyboard, screen = pty.openpty()
    argv = ["setsid", "--ctty", bash, "--norc", "--noprofile", "--noediting", "-i"]
    shell = subprocess.Popen(
        argv, cwd=folder, env={**environment, "PS1": "[$?]> "}, stdin=screen, stdout=screen, stderr=screen
    )
    os.close(screen)
    made = Terminal(keyboard)
    try:
        made.prompt(20)
        yield made
    finally:
        if made.is_open:
            made.close()  # hangs up
        try:
            shell.wait(5)
        except subprocess.TimeoutExpired:
            shell.kill()
            shell.wait()
