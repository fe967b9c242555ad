"""Where a result comes from: the git commit of its workspace, DVC's digests, the time each stage took."""

from typing import Any

from tasks.versioning import git
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

    dvc.lock and metrics are always changed during a run, so they have no say. Before the first commit: (None, True).
    Settings for one run are in no commit.

    Raises:
        InputError: git does not say; the message holds its own line.
    """
    if not git.in_work_tree(ws.root):
        return None, None
    commit = git.commit_of(ws.root)
    if commit is None or ws.once is not None or not git.is_tracked(ws.root, ws.params.name):
        return commit, True
    return commit, git.differs(ws.root, _MADE_FROM)
