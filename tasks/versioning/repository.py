"""A workspace's DVC repository: opened silently, asked patiently, and its errors as one line each.

Here and in the files beside it that change what DVC does, calls are used which are not its public interface: DVC is
pinned.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dass.errors import InfrastructureError, InputError
from tasks.versioning.once import read_instead
from tasks.versioning.waits import bound_waits
from tasks.workspace.folder import Workspace
from tasks.workspace.locked import OTHERS, holders, told_holders
from tasks.workspace.redaction import redacted
from tasks.workspace.small_files import check_pipeline_files

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

T = TypeVar("T")

_TRIES = 5  # DVC's own locks never queue: ask again after 1, 2, 3, 4 s


class VersioningError(InfrastructureError):
    """A result was not recorded, or DVC could not answer. The message is one line."""


@contextmanager
def dvc_repo(ws: Workspace) -> Iterator["Repo"]:
    """The workspace's DVC repository, silent. DVC's errors become one line; paths in messages are the workspace's."""
    check_pipeline_files(ws)
    quiet_dvc()
    from dvc.dependency.param import MissingParamsError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.utils.strictyaml import YAMLValidationError

    try:
        with Repo(str(ws.root)) as repo:
            bound_waits(repo)
            if ws.once is not None:
                read_instead(repo, {ws.root / path.name: path for path in (ws.params, ws.lock_file)})
            yield repo
    except YAMLValidationError as error:
        raise InputError(
            f"DVC cannot use {' '.join(str(error).split())}. Restore that file; dvc.lock can also be deleted."
        ) from error
    except MissingParamsError as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{told}: dvc.yaml names each setting that a stage reads. Add it, as dass init writes it."
        ) from None
    except DvcException as error:
        raise VersioningError(f"DVC: {' '.join(redacted(str(error)).split())}") from error


def quiet_dvc() -> None:
    """Keep DVC from reporting home and from writing between our lines. Call before anything of it is imported."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    import dvc.logger  # noqa: F401  sets its own levels when it is imported

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def patiently(repo: "Repo", operation: Callable[[], T]) -> T:
    """Do what needs DVC's lock, asking again for ten seconds while another process holds it.

    Raises:
        InputError: it still does; the message names it.
    """
    from dvc.lock import LockError

    for attempt in range(1, _TRIES):
        try:
            return operation()
        except LockError:
            time.sleep(attempt)
    try:
        return operation()
    except LockError as error:
        raise InputError(
            f"DVC is busy in {_who_locks(repo)}, try again when it has ended: {' '.join(str(error).split())}"
        ) from None


def _who_locks(repo: "Repo") -> str:
    """Whoever holds DVC's lock of the repository, or the one around its note of who reads and writes what."""
    from dvc.rwlock import RWLOCK_LOCK

    folder = Path(repo.tmp_dir or repo.root_dir)
    return next((told_holders(path) for path in (folder / "lock", folder / RWLOCK_LOCK) if holders(path)), OTHERS)


@contextmanager
def held(repo: "Repo") -> Iterator[None]:
    """DVC's own lock, nothing remembered from before it, and the folder DVC takes relative paths from."""
    with repo.lock, chdir(repo.root_dir):
        repo._reset()
        yield


def stages_of(repo: "Repo") -> list["PipelineStage"]:
    """All stages of dvc.yaml, in its order."""
    return list(repo.stage.load_all(os.path.join(repo.root_dir, "dvc.yaml")))


def stage_of(repo: "Repo", name: str) -> "PipelineStage":
    """One stage of dvc.yaml."""
    return repo.stage.load_one(os.path.join(repo.root_dir, "dvc.yaml"), name)


def name_of(entry: Any) -> str:
    """An input's or output's path inside the workspace."""
    return Path(os.path.relpath(entry.fs_path, entry.repo.root_dir)).as_posix()
