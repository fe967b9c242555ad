"""A run in a terminal that is interrupted or killed: status, prompt, what is left, what Prefect thinks of it.

The seconds seen are logged: pytest --log-cli-level=INFO.
"""

import json
import logging
import os
import shlex
import signal
import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tasks.workspace.folder import Workspace
from tests.terminals import CTRL_C, Terminal, terminal
from tests.test_flows.conftest import Commands
from tests.test_flows.test_compress import wait_for

logger = logging.getLogger(__name__)

TOLD = "dass: interrupted. Finished layers are kept; run again to go on."
_SECONDS = 30.0  # five are meant; other tests work on this machine, too


def home(ws: Workspace) -> Path:
    return ws.private / "prefect"


def at_work(ws: Workspace) -> set[psutil.Process]:
    """Every process that the workspace's name appears in: its command, environment or current folder."""
    found, name = set(), str(ws.root)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if process.pid != os.getpid() and any(name in text for text in told):
                found.add(process)
    return found


def heard_at(ws: Workspace) -> set[str]:
    """The addresses at which processes of the workspace listen."""
    lines = [line for process in at_work(ws) for line in process.net_connections("inet")]
    return {line.laddr.ip for line in lines if line.status == psutil.CONN_LISTEN}


def states(ws: Workspace) -> list[str]:
    """The states of the workspace's flow runs in its own server's database, oldest first."""
    with closing(sqlite3.connect(home(ws) / "prefect.db")) as database:
        rows = database.execute("SELECT parameters, state_name FROM flow_run ORDER BY created").fetchall()
    return [state for parameters, state in rows if json.loads(parameters).get("workspace") == str(ws.root)]


@contextmanager
def pruning(commands: Commands, ws: Workspace, *options: str) -> Generator[tuple[Terminal, int]]:
    """A terminal in which `dass run`, with a server of its own, has pruned a layer; and the command's process."""
    commands.make_database(home(ws))
    done = set(ws.work.glob("*/layer_000.safetensors"))
    with terminal(ws.root, commands.alone(home(ws)).environment) as window:
        window.type(shlex.join(commands.argv("dass", "run", "-S", "prune.alpha=0.25", *options)) + "\n")

        def has_pruned() -> bool:
            window.read(0.05)
            return bool(set(ws.work.glob("*/layer_000.safetensors")) - done)

        wait_for(has_pruned, seconds=120)
        yield window, window.foreground()


def send(window: Terminal, process: int, number: signal.Signals) -> None:
    if number == signal.SIGINT:
        window.type(CTRL_C)
    else:
        os.kill(process, number)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP))],
)
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_cancelled_and_leaves_no_process(
    commands: Commands, finished: Workspace, number: signal.Signals, processes: int
) -> None:
    with pruning(commands, finished, "-S", f"engine.processes={processes}") as (window, process):
        assert heard_at(finished) == {"127.0.0.1"}  # the server, and ranks that send each other tensors
        send(window, process, number)
        begin = time.monotonic()
        status = window.prompt(_SECONDS)
        prompt = time.monotonic() - begin
        shell = psutil.Process(window.foreground())
        wait_for(lambda: at_work(finished) == {shell}, _SECONDS)
        logger.info("prompt %.1f s, all gone %.1f s", prompt, time.monotonic() - begin)
    assert status == 128 + number
    assert window.shown.count(TOLD) == 1
    assert "Traceback" not in window.shown
    assert states(finished) == ["Cancelled"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_closed_terminal_ends_everything(commands: Commands, finished: Workspace, processes: int) -> None:
    with pruning(commands, finished, "-S", f"engine.processes={processes}") as (window, _):
        window.close()
        begin = time.monotonic()
        wait_for(lambda: not at_work(finished), _SECONDS)
        logger.info("all gone %.1f s", time.monotonic() - begin)
    assert states(finished) == ["Cancelled"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_ends_at_once(commands: Commands, finished: Workspace, processes: int) -> None:
    with pruning(commands, finished, "-S", f"engine.processes={processes}") as (window, _):
        window.type(CTRL_C)
        time.sleep(0.5)
        begin = time.monotonic()
        window.type(CTRL_C)
        status = window.prompt(_SECONDS)
        prompt = time.monotonic() - begin
        shell = psutil.Process(window.foreground())
        wait_for(lambda: at_work(finished) == {shell}, _SECONDS)
        logger.info("prompt %.1f s, all gone %.1f s", prompt, time.monotonic() - begin)
    assert status == 130
    assert prompt < 3.0


@pytest.mark.faults("kill -9 of a run")
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_leaves_no_process_and_the_next_one_calls_it_crashed(
    commands: Commands, finished: Workspace, processes: int
) -> None:
    with pruning(commands, finished, "-S", f"engine.processes={processes}") as (window, process):
        os.kill(process, signal.SIGKILL)
        begin = time.monotonic()
        assert window.prompt(_SECONDS) == 137
        shell = psutil.Process(window.foreground())
        wait_for(lambda: at_work(finished) == {shell}, _SECONDS)
        logger.info("all gone %.1f s", time.monotonic() - begin)
        assert states(finished) == ["Running"]
        window.type(shlex.join(commands.argv("dass", "run")) + "\n")
        assert window.prompt(120) == 0
    assert states(finished) == ["Crashed", "Completed"]
