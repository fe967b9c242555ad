"""Git, asked in a process of its own: whether a folder is in a work tree, and at which commit that is.

What git refuses is refused here in git's own words: an answer that was not given is never taken for "no".
"""

import os
import subprocess
from pathlib import Path

from dass.errors import InputError

_OUTSIDE = "not a git repository (or any"
# A git hook sets these for its own repository, which need not be the folder's.
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")


def in_work_tree(folder: Path) -> bool:
    """Whether a folder is in a git work tree. In a bare repository it is not.

    Raises:
        InputError: git does not say, for example because the repository belongs to another user; or there is a
            repository and no git.
    """
    done = _ask(folder, "rev-parse", "--is-inside-work-tree")
    if done is None or (done.returncode and _OUTSIDE in done.stderr):
        return False
    return _answer(folder, done) == "true"


def is_tracked_place(folder: Path, existing: Path | None = None) -> bool:
    """Whether git would track what lies in a folder: it is in a work tree, and not ignored there.

    Args:
        folder: the folder; it need not exist.
        existing: the nearest one that does.

    Raises:
        InputError: git does not say.
    """
    where = existing or folder
    if not in_work_tree(where):
        return False
    done = _ask(where, "check-ignore", "--quiet", "--", f"./{os.path.relpath(folder / 'dvc.yaml', where)}")
    if done is not None and done.returncode == 1:
        return True
    if done is not None:
        _answer(where, done)
    return False


def commit_of(folder: Path) -> str | None:
    """The commit that a work tree is at; None before its first one.

    Raises:
        InputError: git does not say.
    """
    done = _ask(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    return None if done is None or done.returncode == 1 else _answer(folder, done)


def differs(folder: Path, paths: tuple[str, ...]) -> bool:
    """Whether any of these paths inside a folder differs from the commit, is untracked, or is added but not committed.

    Raises:
        InputError: git does not say.
    """
    done = _ask(folder, "status", "--porcelain", "--untracked-files=all", "--", *paths)
    return done is None or bool(_answer(folder, done))


def is_tracked(folder: Path, name: str) -> bool:
    """Whether git knows a file of a folder."""
    done = _ask(folder, "ls-files", "--error-unmatch", "--", name)
    return done is not None and done.returncode == 0


def _ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run git in a folder; None where there is no git, and no repository either."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    environment["LC_ALL"] = "C"  # what it says is read
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        for parent in (folder, *folder.parents):
            if (parent / ".git").exists():
                raise InputError(
                    f"{folder} is in the git repository of {parent}, and there is no git to ask which commit it is at. "
                    "Install git."
                ) from None
        return None


def _answer(folder: Path, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return done.stdout.strip()
    said = " ".join(done.stderr.split()) or f"status {done.returncode}"
    raise InputError(f"git does not say which commit {folder} is at: {said}")
