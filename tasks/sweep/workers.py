"""Who may work on a sweep's points: whoever has what the sweep's machine has, so that points can be compared."""

import json
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dass.errors import InfrastructureError, InputError
from dass.files import digest_of, sha256_file
from tasks.versioning.code import STAGE_MODULES, code_digest
from tasks.workspace.devices import choose_device
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

_TOLD = 4  # packages that differ, by name


class RefusedWorker(InfrastructureError):
    """A worker is another than the sweep's machine: the point is for others.

    Attributes:
        worker: the scheduler's name for it.
    """

    worker: str = ""


def wanted_of_worker(ws: Workspace, settings: Settings) -> str:
    """What whoever works on a point must have, as text: code, every package that dass needs, device, workspace."""
    return json.dumps(_here(ws, settings))


def check_worker(ws: Workspace, settings: Settings, wanted: str) -> None:
    """Compare this process with the sweep's.

    Raises:
        RefusedWorker: it differs. Both sides are named.
    """
    node, there = platform.node(), json.loads(wanted)
    if not (ws.base / "source.json").is_file():
        raise RefusedWorker(
            f"The worker on {node} does not see {ws.base}: it needs the workspace's folder at the same path (a shared "
            "file system)."
        )
    here = _here(ws, settings)
    different = [
        f"{name} {here.get(name, 'missing')} (the sweep has {value})"
        for name, value in there.items()
        if here.get(name) != value
    ]
    if different:
        more = f" and {len(different) - _TOLD} more" if len(different) > _TOLD else ""
        raise RefusedWorker(
            f"The worker on {node} has {', '.join(different[:_TOLD])}{more}: install there what requirements.lock and "
            "the sweep's machine have."
        )


def _here(ws: Workspace, settings: Settings) -> dict[str, str]:
    """What counts comes first: a message names the first few that differ."""
    try:
        device = choose_device(settings.engine.device).type
    except InputError:
        device = "none such"
    code = digest_of([code_digest(stage) for stage in STAGE_MODULES])[:12]
    base = sha256_file(ws.base / "source.json")[:12]
    return {"code": code, "base": base, "device": device, "python": platform.python_version(), **packages()}


@cache
def packages() -> dict[str, str]:
    """Installed versions of dass's requirements, of theirs, and so on: what a lock file pins."""
    found: dict[str, str] = {}
    waiting = ["dass"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # of another platform, or an extra
            continue
        found[name] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)
    first = ("torch", "transformers", "safetensors", "numpy")
    return {name: found[name] for name in (*first, *sorted(found.keys() - set(first))) if name in found}


def threads_here() -> int:
    """How many threads torch computes with; sums depend on it in their last digits."""
    import torch

    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Compute with so many, whatever the scheduler gives a process: it knows one thread a worker."""
    import torch

    torch.set_num_threads(count)
