"""A second place for a workspace to work in: a git worktree at a revision, where a run touches nobody's files.

It lies in .dass/checkout and stays for the next run, with the layers that were finished there. DVC's cache and remotes,
MLflow's embedded store and what git keeps of the ledger are the workspace's own.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.sources.locate import is_local
from tasks.versioning import git
from tasks.versioning.pins import given_sources
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import take_lease
from tasks.workspace.settings import Settings, load_settings

_FOLDER = "checkout"
_NEEDED = ("params.yaml", "dvc.yaml", ".dvc/config")


@dataclass(frozen=True)
class Checkout:
    """A worktree that this process holds.

    Attributes:
        ws: the workspace in it.
        commit: what it is at, whole.
    """

    ws: Workspace
    commit: str


def can_check_out(ws: Workspace) -> bool:
    """Whether the workspace is in git, with a commit."""
    return git.is_tracked_place(ws.root) and git.commit_of(ws.root) is not None


def lease_file(ws: Workspace) -> Path:
    """The lease of whoever works in the checkout."""
    return ws.private / f"{_FOLDER}.lock"


def standing(ws: Workspace) -> Workspace | None:
    """The checkout as the last run left it; None: there is none."""
    tree = ws.private / _FOLDER
    if not (tree / ".git").is_file():
        return None
    there = Workspace(tree / git.prefix(ws.root), keeper=ws.root)
    return there if there.params.is_file() else None


@contextmanager
def checked_out(ws: Workspace, revision: str) -> Iterator[Checkout]:
    """Hold the workspace's checkout, at a revision. One process at a time does.

    Raises:
        InputError: git knows no such commit, or it holds no workspace; a source that git does not have cannot be
            reached from there; another run holds the checkout.
    """
    commit = git.resolved(ws.root, revision)
    if commit is None:
        raise InputError(f"--revision is {revision!r}: git knows no such commit in {ws.root}. See: git log")
    ws.private.mkdir(exist_ok=True)
    lease = take_lease(lease_file(ws), f"The checkout of {ws.root}")
    try:
        yield Checkout(_made(ws, commit, revision), commit)
    finally:
        lease.release()


def _made(ws: Workspace, commit: str, revision: str) -> Workspace:
    tree, prefix = ws.private / _FOLDER, git.prefix(ws.root)
    for name in _NEEDED:
        if git.blob(ws.root, f"{commit}:{Path(prefix, name).as_posix()}") is None:
            raise InputError(
                f"{revision} (commit {commit[:10]}) has no {name} of {ws.root}, and a scheduled run works with what is "
                f"committed. Run: git add {name} && git commit"
            )
    if not git.move_worktree(tree, commit):
        shutil.rmtree(tree, ignore_errors=True)
        git.add_worktree(ws.root, tree, commit)
    there = Workspace(tree / prefix, keeper=ws.root)
    _share_dvc(ws, there)
    _link_sources(ws, there, load_settings(there.params))
    return there


def _share_dvc(ws: Workspace, there: Workspace) -> None:
    """Give the checkout the workspace's cache, and remotes wherever they lie. Credentials of .dvc/config.local, too."""
    from dvc.config import Config, ConfigError, merge

    try:
        ours = Config(str(ws.root / ".dvc"), validate=False)
        shared: dict[str, Any] = {"cache": {"dir": str(ws.root / ".dvc" / "cache")}, "remote": {}}
        for level in ("repo", "local"):
            one = ours.load_one(level)
            for section in ("cache", "remote"):
                merge(shared[section], one.get(section, {}))
        core = ours.load_one("local").get("core", {})
        with Config(str(there.root / ".dvc"), validate=False).edit("local", validate=False) as local:
            local["cache"] = _plain(shared["cache"])
            local["remote"] = {name: _plain(each) for name, each in shared["remote"].items()}
            local["core"] = {name: value for name, value in core.items() if name != "no_scm"}
    except ConfigError as error:
        raise InputError(f"DVC in {ws.root}: {' '.join(str(error).split())}") from error


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Paths as absolute ones: DVC marks those that were relative, and would write them so again."""
    return {name: str(value) if isinstance(value, str) else value for name, value in section.items()}


def _link_sources(ws: Workspace, there: Workspace, settings: Settings) -> None:
    """What params.yaml names by a relative path, and git does not have, is a link to the workspace's own."""
    for uri in _local_uris(ws, settings):
        here, link = ws.root / uri, there.root / uri
        if not os.path.normpath(link).startswith(f"{there.root}{os.sep}"):
            raise InputError(
                f"{uri} in params.yaml leads out of {ws.root}, and a scheduled run works in {there.root}. "
                f"Write it as an absolute path: {here.resolve()}"
            )
        if link.is_symlink() and not link.exists():
            link.unlink()
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(here.resolve())


def _local_uris(ws: Workspace, settings: Settings) -> Iterable[str]:
    for source in given_sources(settings).values():
        uris = [source.uri] if isinstance(source.uri, str) else source.uri
        if is_local(uris[0], ws.root) and not Path(uris[0]).expanduser().is_absolute():
            yield uris[0]
