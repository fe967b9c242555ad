"""DVC's cache of a workspace, object by object: what its names are, which of them git and the work trees name.

Whatever looks like one of DVC's digests in a dvc.lock or a .dvc file counts as named, in any commit: rather too many.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dass.errors import InputError
from tasks.versioning import git
from tasks.versioning.repository import dvc_repo, held, patiently
from tasks.workspace.folder import Workspace

_ENDINGS = ("dvc.lock", ".dvc")
_DIGEST = re.compile(r"\b[0-9a-f]{32}(?:\.dir\b|(?![0-9a-f]))")
_OBJECT = re.compile(r"[0-9a-f]{30}(?:\.dir)?")
_OUT = re.compile(r"^- (?P<lines>(?:.*\n)(?:  .*\n?)*)", re.MULTILINE)
_PASSED_OVER = (".git", ".dvc", ".dass", ".venv", "mlartifacts", "artifacts")  # nobody tracks data inside them


@dataclass(frozen=True)
class Cache:
    """A workspace's own cache, while DVC's lock is held.

    Attributes:
        folder: where its objects lie.
        objects: digest, ".dir" behind a folder's -> its file.
    """

    folder: Path
    objects: dict[str, Path]

    def with_contents(self, named: Iterable[str]) -> set[str]:
        """Digests, and those of the files in the folders among them.

        Raises:
            InputError: a folder's list of files cannot be read.
        """
        whole: set[str] = set()
        for digest in named:
            whole.add(digest)
            path = self.objects.get(f"{digest.removesuffix('.dir')}.dir")
            if path is not None:
                whole |= {path.parent.name + path.name, *_listed(path)}
        return whole


@contextmanager
def own_cache(ws: Workspace) -> Iterator[Cache | None]:
    """Hold DVC's lock, and see what its cache holds; None: the cache lies outside the workspace, where others use it.

    Raises:
        InputError: DVC is busy, or its configuration cannot be used.
    """
    with dvc_repo(ws) as repo, ExitStack() as until_done:
        patiently(repo, lambda: until_done.enter_context(held(repo)))
        folder = Path(repo.cache.local.path).resolve()
        is_ours = folder.is_relative_to((ws.root / ".dvc").resolve())
        yield Cache(folder, _objects(folder)) if is_ours else None


def named_by_git(ws: Workspace) -> set[str]:
    """Digests that a commit, a reflog, an index or a work tree of the workspace's repository names; and those of the
    workspace as it lies there.

    Raises:
        InputError: git refuses.
    """
    places = {ws.root}
    texts: list[str] = []
    if git.in_work_tree(ws.root):
        prefix = git.prefix(ws.root)
        places |= {tree / prefix for tree in git.worktrees(ws.root)}
        texts.append(git.every_text_of(ws.root, _ENDINGS))
    for place in places:
        texts += [path.read_text(encoding="utf-8", errors="replace") for path in _dvc_files(place)]
    return {digest for text in texts for digest in _DIGEST.findall(text)}


def _dvc_files(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name not in _PASSED_OVER]
        for name in files:
            if name.endswith(_ENDINGS) and (Path(folder) / name).is_file():
                yield Path(folder) / name


def run_cache(ws: Workspace) -> dict[str, str]:
    """Digest -> path of every output that a stage has ever made here, as DVC's run-cache remembers."""
    made: dict[str, str] = {}
    for entry in (ws.root / ".dvc" / "cache" / "runs").glob("*/*/*"):
        _, _, outs = entry.read_text(encoding="utf-8", errors="replace").partition("outs:\n")
        for out in _OUT.finditer(outs):
            fields = dict(re.findall(r"^\s*(md5|path): (\S+)$", out["lines"], re.MULTILINE))
            if fields.keys() >= {"md5", "path"}:
                made[fields["md5"]] = fields["path"]
    return made


def remove_objects(paths: Collection[Path]) -> None:
    """Remove objects, folders' lists before the files that they name: DVC then knows that such a folder is gone."""
    for path in sorted(paths, key=lambda path: not path.name.endswith(".dir")):
        path.unlink(missing_ok=True)


def _objects(folder: Path) -> dict[str, Path]:
    found = {}
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if _OBJECT.fullmatch(path.name) and path.is_file():
            found[path.parent.name + path.name] = path
    return found


def _listed(path: Path) -> list[str]:
    try:
        return [str(each["md5"]) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(
            f"{path} lists the files of a folder that something needs, and cannot be read: which objects those are is "
            "unknown. Remove it and run dvc pull or dass run, which makes it again."
        ) from None
