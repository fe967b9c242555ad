"""DVC's digests of large files are handed to it: they come from the one read, or the writing, that ours come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.workspace.digests import LEAST_BYTES, known_digests, remember

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

_MD5 = "md5"


def hand_over(repo: "Repo", stage: "PipelineStage") -> None:
    """Put the md5 of a stage's large outputs where DVC keeps those that it has made: it reads none of them then.

    DVC believes it for as long as a file has the same inode, size and time, as it believes its own.
    """
    from dvc_data.hashfile.hash_info import HashInfo

    for out in stage.outs:
        known = {str(path): known_digests(path, md5=True).md5 for path in _large_files(out.fs_path)}
        repo.state.save_many([(path, HashInfo(_MD5, md5), None) for path, md5 in known.items()], out.fs)


@contextmanager
def digests_kept(repo: "Repo", stage: "PipelineStage") -> Iterator[None]:
    """Around DVC's commit, which puts links, or copies of its own, into the place of a stage's outputs: what is
    remembered of them is remembered of what takes their place, where DVC says that its bytes are the same."""
    known = [(path, out, known_digests(path, md5=True)) for out in stage.outs for path in _large_files(out.fs_path)]
    yield
    for path, out, digests in known:
        _, found = repo.state.get(str(path), out.fs)
        if found is not None and (found.name, found.value) == (_MD5, digests.md5):
            remember(path, digests)


def _large_files(place: str) -> Iterator[Path]:
    root = Path(place)
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_file() and path.stat().st_size >= LEAST_BYTES:
            yield path
