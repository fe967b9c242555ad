"""dass.lock.json: what the settings resolved to when a run began.

`sources` names the very bytes behind each uri; `code` names the code of each stage, for workspaces whose dvc.yaml
cannot point at code files. Both are dependencies in dvc.yaml, so DVC sees a file or a program that changed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import read_json, write_json
from tasks.code import code_digest
from tasks.settings import Settings, Source
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
        "sources": {name: _pin(name, source, root or ws.root) for name, source in given.items()},
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


def _pin(name: str, source: Source, root: Path) -> dict[str, Any]:
    if source.sha256 is not None:  # a promise already: whoever reads the source checks it
        return {"sha256": source.sha256, "revision": None}
    from tasks.sources import pin

    return dict(pin(source, root, "model" if name == "model" else "dataset"))
