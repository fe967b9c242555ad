"""DVC's own state files, which it truncates and then writes: dvc.lock, and the note of who reads and writes what.

A process killed in between leaves an empty file that blocks every later command. Here dvc.lock is written beside and
renamed; and what another process left empty is made anew, because nothing is lost by it: DVC's run-cache knows the
results, and the note is about processes that are gone.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.files import complete_file, write_json

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

logger = logging.getLogger("dass")


def dump_stage(repo: "Repo", stage: "PipelineStage") -> None:
    """Write a stage's inputs and outputs into dvc.lock, complete or not at all. Call while DVC's lock is held."""
    from dvc.dvcfile import Lockfile

    path = Path(repo.root_dir) / "dvc.lock"
    with complete_file(path) as temporary:
        if path.exists():
            shutil.copy(path, temporary)  # the entries of the other stages, and the file's mode
        Lockfile(repo, str(temporary)).dump(stage)


def mend_state(repo: "Repo", lost: tuple[int, str] | None = None) -> None:
    """Remove what a process that is gone left: state files that are empty or cut off, and the note of what it read and
    wrote. Call while DVC's lock is held.

    Args:
        lost: number and command of a process whose place this one took. It may only be asleep, and DVC waits for it.
    """
    path = Path(repo.root_dir) / "dvc.lock"
    if path.is_file() and not path.read_bytes().strip():
        path.unlink()
        logger.warning("dvc.lock was empty, as a killed DVC leaves it: what its run-cache knows is restored.")
    _mend_rwlock(repo, lost)


def _mend_rwlock(repo: "Repo", lost: tuple[int, str] | None) -> None:
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    if repo.tmp_dir is None:
        return
    path = Path(repo.tmp_dir) / RWLOCK_FILE
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(os.path.join(repo.tmp_dir, RWLOCK_LOCK), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
        try:
            noted = json.loads(path.read_bytes())
            if lost is not None:
                write_json(path, _without(noted, *lost))
        except FileNotFoundError:
            return
        except ValueError:  # DVC writes it in one go: this is no file of a process that still lives
            path.unlink()
            logger.warning("%s was cut off, as a killed DVC leaves it: removed.", path)


def _without(noted: dict[str, Any], pid: int, command: str) -> dict[str, Any]:
    """DVC's note of who reads and writes what, {"write": {path: process}, "read": {path: [processes]}}, without one."""
    gone = {"pid": pid, "cmd": command}
    writes = {path: process for path, process in noted.get("write", {}).items() if process != gone}
    reads = {
        path: left
        for path, processes in noted.get("read", {}).items()
        if (left := [process for process in processes if process != gone])
    }
    return {"write": writes, "read": reads}
