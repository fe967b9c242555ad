"""Settings for one run: DVC reads another params.yaml and dass.lock.json in the place of the workspace's own.

What a run used is what dvc.lock records, as always; the workspace's own files are not touched. So the next run without
these settings sees that they differ, and makes or restores what its own ask for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo


def read_instead(repo: "Repo", files: Mapping[Path, Path]) -> None:
    """Let a repository read other files in the place of some of its own: path -> the file that is read.

    By DVC's own way to read a repository from elsewhere: a file system that it is given.
    """
    from dvc.fs import LocalFileSystem

    instead = {str(path): str(file) for path, file in files.items()}

    class Redirected(LocalFileSystem):
        def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            return super().open(instead.get(path, path), *args, **kwargs)

        def exists(self, path: str, *args: Any, **kwargs: Any) -> Any:
            return super().exists(instead.get(path, path), *args, **kwargs)

        def isfile(self, path: str) -> bool:
            return bool(super().isfile(instead.get(path, path)))

    hash_jobs = repo.fs.hash_jobs
    repo.fs = Redirected()
    repo.fs.hash_jobs = hash_jobs
