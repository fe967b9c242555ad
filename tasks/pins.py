"""dass.lock.json: what the settings resolved to when a run began.

`sources` names the very bytes behind each uri; `code` names the code of each stage, for workspaces whose dvc.yaml
cannot point at code files. Both are dependencies in dvc.yaml, so DVC sees a file or a program that changed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import digest_of, read_json, write_json
from tasks.checkpoint_folder import checkpoint_files
from tasks.code import code_digest
from tasks.downloads import local_digest
from tasks.hub import HubId, RepoType, commit_of
from tasks.settings import Settings, Source
from tasks.sources import locate
from tasks.workspace import Workspace

SOURCES = ("model", "calibration", "evaluation")


def read_pins(ws: Workspace) -> dict[str, Any]:
    """The content of dass.lock.json.

    Raises:
        InputError: it is missing or not JSON.
    """
    try:
        pins = read_json(ws.lock_file)
        return {"sources": dict(pins["sources"]), "code": dict(pins["code"])}
    except FileNotFoundError:
        raise InputError(
            f"No {ws.lock_file.name} in {ws.root}: nothing says which bytes the sources are. Run: dass pin"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{ws.lock_file} cannot be read. Delete it and run: dass pin") from None


def pinned(ws: Workspace, source: str) -> dict[str, Any]:
    """What dass.lock.json says of one source ("model", "calibration" or "evaluation"): {"sha256", "revision"}.

    Raises:
        InputError: there is no lock file, or it does not name this source.
    """
    pins = read_pins(ws)["sources"]
    if source not in pins:
        raise InputError(f"{ws.lock_file.name} does not name sources.{source}. Run: dass pin")
    return dict(pins[source])


def refresh_pins(
    ws: Workspace, settings: Settings, code_of: Iterable[str] = (), root: Path | None = None
) -> dict[str, Any]:
    """Resolve every source, digest the code of the stages in `code_of`, and write dass.lock.json if it differs.

    Args:
        root: the folder that relative paths of sources start from; None is the workspace.

    Raises:
        InputError: a source cannot be found, or is not what its sha256 says.
    """
    given: dict[str, Source] = {name: getattr(settings.sources, name) for name in SOURCES}
    pins = {
        "sources": {
            name: pin(source, root or ws.root, "model" if name == "model" else "dataset")
            for name, source in given.items()
        },
        "code": {stage: code_digest(stage) for stage in sorted(code_of)},
    }
    if _current(ws) != pins:
        write_json(ws.lock_file, pins)
    return pins


def _current(ws: Workspace) -> dict[str, Any] | None:
    try:
        return read_pins(ws)
    except InputError:
        return None


def pin(source: Source, root: Path = Path(), repo_type: RepoType = "model") -> dict[str, str | None]:
    """The very bytes a source stands for now: {"sha256", "revision"}.

    Raises:
        InputError: the source cannot be found.
    """
    if source.sha256 is not None:  # a promise already: whoever reads the source checks it
        return {"sha256": source.sha256, "revision": None}
    where = locate(source, root)
    if isinstance(where, HubId):
        return {"sha256": None, "revision": commit_of(where, repo_type)}
    if where.is_dir():
        return {
            "sha256": digest_of({path.name: local_digest(path) for path in checkpoint_files(where)}),
            "revision": None,
        }
    return {"sha256": local_digest(where), "revision": None}
