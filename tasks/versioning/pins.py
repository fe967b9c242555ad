"""dass.lock.json: what the settings resolved to when a run began.

`sources` names the very bytes behind each uri; `code` names the code of each stage, for workspaces whose dvc.yaml
cannot point at code files. Both are dependencies in dvc.yaml, so DVC sees a file or a program that changed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import write_json
from tasks.sources.pinned import pin, read_pins
from tasks.versioning.code import code_digest
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

SOURCES = ("model", "calibration", "evaluation")


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
