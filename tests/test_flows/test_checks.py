"""What can be refused is refused at the start: nothing was fetched, and params.yaml is as it was."""

import re
from pathlib import Path

import pytest
import torch

from flows.cli.main import run_command
from flows.initialise import make_workspace
from tests.models import save_tiny_checkpoint, tiny_text

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is refused here")


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    save_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text(100))
    return [str(tmp_path / "model"), str(tmp_path / "text.txt"), str(tmp_path / "text.txt")]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run_command(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_change_that_cannot_be_run_is_refused_and_not_written(
    capsys: pytest.CaptureFixture[str], sources: list[str], tmp_path: Path
) -> None:
    ws = make_workspace(tmp_path / "ws", *sources)
    before = ws.params.read_bytes()
    for change, message in (
        ("engine.device=cuda", "engine.device is 'cuda', and torch sees 0 CUDA devices"),
        ("prune.pattern=5:7", "sources.model cannot be pruned as `prune` says: .*7"),
        ("sources.model.uri=./nowhere", "There is no .*nowhere"),
        ("register.model=a/b", "register.model"),
    ):
        line = refused(capsys, "run", "-w", str(ws.root), "-S", change, "-S", "prune.sparsity=null")
        assert re.search(message, line), line
        assert ws.params.read_bytes() == before
    assert not ws.base.parent.exists()
    assert not (ws.root / "mlflow.db").exists()


def test_init_refuses_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], sources: list[str], tmp_path: Path
) -> None:
    line = refused(capsys, "init", str(tmp_path / "ws"), "--model", sources[0], "-S", "engine.device=cuda:1")
    assert "engine.device is 'cuda:1', and torch sees 0 CUDA devices" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]
