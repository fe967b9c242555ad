"""How much of the disk a workspace takes, place by place: a file with several names is counted once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.registry.place import artifacts, database
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.folder import Workspace
from tasks.workspace.sizes import Counted

_PRIVATE = ("work", "sweeps", "statistics", "tasks", "study", "checkout", "prefect", "logs")
"""Folders of .dass that may grow."""


@dataclass(frozen=True)
class Usage:
    """One place.

    Attributes:
        what: its name.
        where: the folder or file.
        bytes, files: what lies there and was not met before.
    """

    what: str
    where: str
    bytes: int
    files: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def usage(ws: Workspace) -> list[Usage]:
    """Every place of a workspace that holds something, and what is kept for the user beside it.

    DVC's cache comes first: what artifacts/ links to there is counted there.
    """
    counted, found = Counted(), []
    for what, paths in _places(ws).items():
        size = counted.size_of(*paths)
        if size.files:
            found.append(Usage(what, str(paths[0]), size.bytes, size.files))
    return found


def _places(ws: Workspace) -> dict[str, list[Path]]:
    named = [ws.private / name for name in _PRIVATE]
    others = [path for path in sorted(ws.private.glob("*")) if path not in named]
    return {
        "DVC cache": [ws.root / ".dvc" / "cache"],
        "MLflow": [artifacts(ws), database(ws)],
        "artifacts": [ws.base.parent],
        **{f".dass/{path.name}": [path] for path in named},
        **({".dass, the rest": others} if others else {}),
        "cache of all workspaces": [cache_folder()],
    }
