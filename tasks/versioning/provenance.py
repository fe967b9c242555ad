"""Where a result comes from: the git commit of its workspace, DVC's digests, the time each stage took."""

import subprocess
from pathlib import Path
from typing import Any

from tasks.versioning.stages import recorded_outs
from tasks.workspace.folder import Workspace

_MADE_FROM = (
    "params.yaml",
    "dvc.yaml",
    "dass",
    "tasks",
    "flows",
)  # what a result is made from, for git's opinion of it


def provenance(ws: Workspace, seconds: dict[str, float]) -> dict[str, Any]:
    """What a registered version says of its origin: git commit, DVC's digests, seconds each stage took in this run."""
    commit, dirty = git_state(ws)
    return {"git_commit": commit, "git_dirty": dirty, "dvc": recorded_outs(ws), "seconds": seconds}


def git_state(ws: Workspace) -> tuple[str | None, bool | None]:
    """The commit the workspace is at, and whether what makes the result differs from it; (None, None) outside git.

    dvc.lock and metrics are always changed during a run, so they have no say.
    """
    commit = _git(ws.root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    tracked = _git(ws.root, "ls-files", "--error-unmatch", ws.params.name) is not None
    return commit, not tracked or bool(
        _git(ws.root, "status", "--porcelain", "--untracked-files=all", "--", *_MADE_FROM)
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
