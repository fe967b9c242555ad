"""What the shell offers behind Tab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import ROOT


def completed(typed: str, folder: Path = ROOT) -> set[str]:
    """What Tab offers behind a line, asked as bash asks."""
    asked = {"_DASS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    command = [sys.executable, "-P", "-m", "flows"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dass ro", {"rollback"}),
        ("dass run --until ba", {"baseline"}),
        ("dass run --recipe q", {"quick"}),
        ("dass run -S prune.metho", {"prune.method"}),
        ("dass run --with engine.dev", {"engine.device"}),
        ("dass settings promote.max_o", {"promote.max_overlap"}),
        ("dass settings rec", {"recover", "recover.teacher", "recipes"}),
    ],
)
def test_the_shell_completes(typed: str, offered: set[str]) -> None:
    found = completed(typed)
    assert found >= offered
    assert all(word.startswith(typed.rpartition(" ")[2]) for word in found)


def test_the_shell_completes_versions_and_their_aliases(finished: Workspace, tmp_path: Path) -> None:
    before = finished.params.read_bytes(), sorted(finished.root.rglob("*"))
    assert completed("dass promote ", finished.root) == {"challenger", "1"}
    assert completed(f"dass show -w {finished.root} ch", tmp_path) == {"challenger"}
    assert completed("dass promote ", tmp_path) == set()  # no workspace
    assert (finished.params.read_bytes(), sorted(finished.root.rglob("*"))) == before
