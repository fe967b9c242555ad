"""`dass stack worker`: Prefect's own, one in a workspace for each pool, and what it is refused for."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from dass.errors import InputError
from flows.slots import own_name
from flows.stack.worker import become_worker
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands


class Became(Exception):
    """Another program."""


@pytest.fixture(autouse=True)
def _stays_this_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(*what: object) -> NoReturn:
        raise Became(*what)

    monkeypatch.setattr(os, "execve", become)


def test_it_becomes_prefects_worker_with_the_environment_it_was_given_and_is_the_only_one_of_its_pool(
    commands: Commands, tmp_path: Path
) -> None:
    ws = Workspace(tmp_path)
    with pytest.raises(Became) as became:
        become_worker(ws, "one/two", None, {"MINE": "1"})
    program, command, environment = became.value.args
    start = ["-P", "-m", "prefect", "worker", "start", "--pool", "one/two", "--type", "process", "--name", own_name()]
    assert (program, command[1:]) == (sys.executable, [*start, "--with-healthcheck"])
    assert environment == {"MINE": "1"}
    told = rf"Pool one/two's work in {tmp_path} is held by process {os.getpid()}, worker {own_name()}\. Wait"
    with pytest.raises(InputError, match=told):
        become_worker(ws, "one/two", "another", {})
    with pytest.raises(Became):
        become_worker(ws, "three", None, {})


def test_without_a_server_it_is_refused(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(InputError, match="PREFECT_API_URL is not set: a worker needs the address"):
        become_worker(Workspace(tmp_path), "dass", None, {})
    assert list(tmp_path.iterdir()) == []
