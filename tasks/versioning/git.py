"""Git, asked in a process of its own: whether a folder is in a work tree, and at which commit that is.

What git refuses is refused here in git's own words: an answer that was not given is never taken for "no".
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from dass.errors import InputError
from tasks.workspace.redaction import redacted

_PUSH_SECONDS = 20.0
_WITHOUT_HOOKS = ("-c", "core.hooksPath=/dev/null")
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


def resolved(folder: Path, revision: str) -> str | None:
    """The commit that a branch, a tag or another name stands for; None: git knows none."""
    if revision.startswith("-"):
        return None
    done = _ask(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def add_worktree(folder: Path, tree: Path, commit: str) -> None:
    """Make a worktree of the folder's repository at a commit, on no branch. The user's hooks are not run.

    Raises:
        InputError: git refuses, in its own words.
    """
    _run(folder, "worktree", "prune")
    _run(folder, *_WITHOUT_HOOKS, "worktree", "add", "--force", "--detach", str(tree), commit)


def move_worktree(tree: Path, commit: str) -> bool:
    """Bring a worktree of ours to a commit: files that git has are as there, others stay. False: it is none."""
    if not (tree / ".git").is_file() or _run_or_none(tree, "rev-parse", "--show-prefix") != "":
        return False
    lock = _run_or_none(tree, "rev-parse", "--path-format=absolute", "--git-path", "index.lock")
    if lock:
        Path(lock).unlink(missing_ok=True)  # of a git that was killed: nobody else works here
    return _run_or_none(tree, *_WITHOUT_HOOKS, "checkout", "--quiet", "--force", "--detach", commit) is not None


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


def _ask(
    folder: Path, *arguments: str, text: str | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run git in a folder; None where there is no git, and no repository either.

    Args:
        folder: where.
        arguments: of git.
        text: its standard input; without it there is none, and no question is asked.
        seconds: how long it may take; then it is ended, which is told as its error.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    environment["LC_ALL"] = "C"  # what it says is read
    environment["GIT_TERMINAL_PROMPT"] = "0"
    command = ["git", "-C", str(folder), *arguments]
    try:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
        return subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, **given
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"nothing within {seconds:g} s")
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


def prefix(folder: Path) -> str:
    """Where a folder lies in its work tree, "" for the top and outside of any."""
    done = _ask(folder, "rev-parse", "--show-prefix")
    return done.stdout.strip().rstrip("/") if done is not None and done.returncode == 0 else ""


def blob(folder: Path, name: str) -> str | None:
    """The text of a blob, named as git does ("REF:PATH"); None: there is none, or no repository."""
    done = _ask(folder, "cat-file", "blob", name)
    return done.stdout if done is not None and done.returncode == 0 else None


def refs(folder: Path, prefix: str) -> list[str]:
    """The refs that begin so; none outside git."""
    done = _ask(folder, "for-each-ref", "--format=%(refname)", prefix)
    return done.stdout.split() if done is not None and done.returncode == 0 else []


def names_in(folder: Path, ref: str) -> list[str]:
    """The files at the top of a ref's tree."""
    done = _ask(folder, "ls-tree", "--name-only", "-z", ref)
    return [name for name in done.stdout.split("\0") if name] if done is not None and done.returncode == 0 else []


def every_text_of(folder: Path, endings: tuple[str, ...]) -> str:
    """All texts, one behind the other, that git has under names that end so: in any commit of any ref or reflog, and
    in every work tree's index.

    Raises:
        InputError: git refuses, in its own words.
    """
    listed = _run(folder, "rev-list", "--objects", "--all", "--reflog", "--indexed-objects")
    named = (line.partition(" ") for line in listed.splitlines())
    wanted = sorted({object_ for object_, _, name in named if name.endswith(endings)})
    return _run(folder, "cat-file", "--batch", text="".join(f"{object_}\n" for object_ in wanted)) if wanted else ""


def worktrees(folder: Path) -> list[Path]:
    """The roots of every work tree of the folder's repository, its own too; none outside git."""
    done = _ask(folder, "worktree", "list", "--porcelain")
    lines = done.stdout.splitlines() if done is not None and done.returncode == 0 else []
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def is_shallow(folder: Path) -> bool:
    """Whether a repository was cloned without its whole history."""
    done = _ask(folder, "rev-parse", "--is-shallow-repository")
    return done is not None and done.stdout.strip() == "true"


def commit_file(folder: Path, ref: str, name: str, text: str, message: str) -> bool:
    """Put a file into the tree of a ref of ours, as one more commit. Neither the index nor a branch is touched.

    Signed where the user signs commits (commit.gpgsign).

    Returns:
        False: another process moved the ref meanwhile, and nothing was done.

    Raises:
        InputError: git refuses, in its own words.
    """
    parent = _tip(folder, ref)
    listed = _run(folder, "ls-tree", parent).splitlines() if parent else []
    kept = [line for line in listed if not line.endswith(f"\t{name}")]
    object_ = _run(folder, "hash-object", "-w", "--stdin", text=text)
    tree = _run(folder, "mktree", text="".join(f"{line}\n" for line in [*kept, f"100644 blob {object_}\t{name}"]))
    signs = _ask(folder, "config", "--type=bool", "commit.gpgsign")
    sign = ["-S"] if signs is not None and signs.stdout.strip() == "true" else []
    identity = [] if _has_identity(folder) else ["-c", "user.name=dass", "-c", "user.email=dass@localhost"]
    parents = ["-p", parent] if parent else []
    commit = _run(folder, *identity, "commit-tree", *sign, *parents, "-m", message, tree)
    moved = _ask(folder, "update-ref", ref, commit, parent or "0" * len(commit))
    assert moved is not None
    if moved.returncode and _tip(folder, ref) == parent:
        raise _refused(folder, moved)
    return not moved.returncode


def _tip(folder: Path, ref: str) -> str:
    """The commit that a ref is at, "" before its first one."""
    found = _ask(folder, "rev-parse", "--verify", "--quiet", ref)
    return found.stdout.strip() if found is not None and found.returncode == 0 else ""


def push(folder: Path, ref: str) -> str | None:
    """Push a ref where the current branch is pushed; where there is no remote, nothing is done.

    Returns:
        Why that failed, in git's words; None when it did not.
    """
    remote = _remote(folder)
    if remote is None:
        return None
    done = _ask(folder, "push", "--quiet", remote, f"{ref}:{ref}", seconds=_PUSH_SECONDS)
    if done is None or done.returncode == 0:
        return None
    return redacted(" ".join(done.stderr.split())) or f"status {done.returncode}"


def _remote(folder: Path) -> str | None:
    """The remote that the current branch is pushed to, else the only one."""
    branch = _ask(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    names = [f"branch.{branch.stdout.strip()}.pushRemote"] if branch is not None and branch.returncode == 0 else []
    names += ["remote.pushDefault", *(name.replace("pushRemote", "remote") for name in names)]
    for name in names:
        found = _ask(folder, "config", "--get", name)
        if found is not None and found.returncode == 0:
            return found.stdout.strip()
    remotes = _ask(folder, "remote")
    listed = remotes.stdout.split() if remotes is not None and remotes.returncode == 0 else []
    return listed[0] if len(listed) == 1 else None


def _has_identity(folder: Path) -> bool:
    done = _ask(folder, "var", "GIT_COMMITTER_IDENT")
    return done is not None and done.returncode == 0


def _run(folder: Path, *arguments: str, text: str | None = None) -> str:
    done = _ask(folder, *arguments, text=text)
    assert done is not None
    if done.returncode:
        raise _refused(folder, done)
    return done.stdout.strip()


def _run_or_none(folder: Path, *arguments: str) -> str | None:
    """What git says; None: it refuses."""
    done = _ask(folder, *arguments)
    return None if done is None or done.returncode else done.stdout.strip()


def _refused(folder: Path, done: subprocess.CompletedProcess[str]) -> InputError:
    return InputError(f"git refused in {folder}: {redacted(' '.join(done.stderr.split()))}")
