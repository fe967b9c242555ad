"""`dass doctor`: what a run needs of this machine, of this workspace and of the servers it names, looked at one by one.

Nothing is made, changed or fetched. Of what is wrong each finding says how it is mended.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.exit_status import judged
from tasks.registry.timeline import plain
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import Settings, load_settings
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "note", "mend"]
GIB = 2**30
LEAST_BYTES = 1 * GIB
"""Free space below which nothing worth pruning can be kept."""
_COPIES = 3  # of the base, while a run works: itself, the pruned checkpoint, the version that MLflow keeps
_REMOTE_SECONDS = 10.0
_LONGEST_NAME = len("signing key")


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        what: the thing.
        state: "ok"; "note": a run works, and something may be missed; "mend": a run, or what the settings ask, fails.
        found: in words.
        mend: how it is mended; None where nothing is wrong.
    """

    what: str
    state: State
    found: str
    mend: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def doctor(ws: Workspace | None) -> Iterator[Finding]:
    """Every finding, as soon as it is made.

    Args:
        ws: the workspace; None: only the machine is looked at.
    """
    yield _looked("dass", _installation)
    if ws is None:
        yield Finding("workspace", "note", "there is none in this folder", "dass init FOLDER, or --workspace FOLDER")
        yield _looked("device", lambda: device("auto"))
        yield _looked("disk", lambda: disk(Path.cwd()))
        yield _looked("signing key", lambda: signing_key(None, None))
        return
    yield Finding("workspace", "ok", str(ws.root))
    settings = None
    try:
        settings = load_settings(ws.params)
        yield Finding("settings", "ok", f"{ws.params.name} can be used")
    except Exception as error:
        yield _broken("settings", error, "Correct it: dass settings")
    yield _looked("device", lambda: device("auto" if settings is None else settings.engine.device))
    yield _looked("disk", lambda: disk(ws.root, _COPIES * _size(ws.base)))
    yield _looked("git", lambda: git(ws, settings))
    yield _looked("pipeline", lambda: stages(ws))
    yield _looked("DVC remote", lambda: dvc_remote(ws, settings))
    yield _looked("MLflow", lambda: mlflow(ws))
    yield _looked("Prefect", lambda: prefect(ws))
    yield _looked("signing key", lambda: signing_key(ws, settings))


def _looked(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # whatever it is, it would end a run too
        return _broken(what, error, "DASS_DEBUG=1 dass run shows more")


def _broken(what: str, error: Exception, otherwise: str) -> Finding:
    """An error as a finding: messages of ours end with what to do."""
    found, stop, mend = judged(error)[1].rstrip(".").rpartition(". ")
    return Finding(what, "mend", found, mend) if stop else Finding(what, "mend", mend, otherwise)


def _installation() -> Finding:
    packages = ", ".join(f"{name} {version(name)}" for name in ("prefect", "dvc", "mlflow", "transformers"))
    return Finding("dass", "ok", f"{version('dass')}, Python {platform.python_version()}, {packages}")


def device(asked: str) -> Finding:
    """Torch's build, what it computes on, and whether that is what the settings ask."""
    import psutil
    import torch

    from tasks.workspace.devices import choose_device

    cores, memory = os.cpu_count(), psutil.virtual_memory()
    chosen = choose_device(asked)  # raises what cannot be had
    told = f"torch {torch.__version__}, engine.device {asked} is {chosen}"
    if chosen.type == "cuda":
        of = torch.cuda.get_device_properties(chosen)
        return Finding("device", "ok", f"{told}: {of.name}, {of.total_memory / GIB:.0f} GiB")
    told += f": {cores} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    if torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "device",
            "note",
            f"{told}; there is an NVIDIA GPU, and this torch is built without CUDA",
            "install a torch build with CUDA into this environment",
        )
    return Finding("device", "ok", told)


def disk(folder: Path, wanted: int = 0) -> Finding:
    """Free space.

    Args:
        folder: where.
        wanted: bytes that a run may write there.
    """
    free = shutil.disk_usage(folder).free
    told = f"{free / GIB:.1f} GiB free at {folder}"
    if free < LEAST_BYTES:
        return Finding("disk", "mend", told, f"free some: at least {LEAST_BYTES / GIB:.0f} GiB")
    if free < wanted:
        more = f"a run may write {wanted / GIB:.1f} GiB: base, pruned checkpoint and registered version"
        return Finding("disk", "note", f"{told}; {more}", "free some, or register.artifact: masks")
    return Finding("disk", "ok", told)


def git(ws: Workspace, settings: Settings | None) -> Finding:
    """Whether git tracks the workspace, and whether the settings ask for what only git gives."""
    from tasks.versioning.provenance import git_state

    commit, dirty = git_state(ws)
    clean = settings is not None and settings.promote.clean_git
    saves = settings is not None and settings.register_.save_experiment
    if commit is None:
        where = "has no commit yet" if dirty else "is not in git"
        told = f"{ws.root.name} {where}: versions name no commit, and DVC compares no revisions"
        if saves or clean:
            told += f"; {'register.save_experiment' if saves else 'promote.clean_git'} needs one"
        return Finding("git", "mend" if clean or saves else "note", told, "git init, git add, git commit")
    told = f"at commit {commit[:8]}"
    if dirty:
        told += ", and params.yaml, dvc.yaml or the code differ from it"
        asked = "; promote.clean_git refuses what is made now" if clean else ""
        return Finding("git", "mend" if clean else "note", told + asked, "git commit")
    return Finding("git", "ok", told)


def stages(ws: Workspace) -> Finding:
    """Whether DVC can read the files that it keeps the stages by."""
    from tasks.versioning.repository import dvc_repo

    with dvc_repo(ws) as repo:
        names = [stage.addressing for stage in repo.index.stages]
    return Finding("pipeline", "ok", f"DVC reads {len(names)} stages in dvc.yaml")


def dvc_remote(ws: Workspace, settings: Settings | None) -> Finding:
    """Whether the remotes that a run pushes to answer."""
    from tasks.versioning.remote import ask_remote, remotes_of

    remotes = remotes_of(ws, None if settings is None else settings.register_.remotes)
    if not remotes:
        told = "a run pushes nowhere: data and results stay in this workspace's cache"
        return Finding("DVC remote", "note", told, "dvc remote add -d NAME URL")
    told = "; ".join(
        f"{name}, {address} {'answers' if ask_remote(ws, name, _REMOTE_SECONDS) else 'answers, and holds nothing yet'}"
        for name, address in remotes.items()
    )
    return Finding("DVC remote", "ok", told)


def mlflow(ws: Workspace) -> Finding:
    """Whether the store answers."""
    from tasks.registry.place import database
    from tasks.registry.tracking import check_reachable, is_embedded, tracking_uri

    if is_embedded(ws) and not database(ws).exists():
        return Finding("MLflow", "ok", f"{database(ws).name} in the workspace, which the first run makes")
    check_reachable(ws)
    return Finding("MLflow", "ok", f"{shown_address(tracking_uri(ws))} answers")


def prefect(ws: Workspace) -> Finding:
    """Whether the server answers that Prefect's settings name, or the database can be used that they name."""
    from flows.prefect_api import check_api
    from flows.prefect_database import Database
    from flows.prefect_settings import prefect_settings

    settings = prefect_settings()
    if settings.api.url:
        check_api(settings)
        return Finding("Prefect", "ok", f"{shown_address(str(settings.api.url))} answers")
    database = Database.of(settings, ws.private)
    if database.chosen is not None and not database.disposable:
        database.check()
    return Finding("Prefect", "ok", f"a server of its own for each command, with flow runs in {database.name}")


def signing_key(ws: Workspace | None, settings: Settings | None) -> Finding:
    """Whether the key can sign, and may register versions of the model. It is not made here."""
    from tasks.registry.key_file import fingerprint, is_made, key_file, key_name, public_key

    if not is_made():
        return Finding("signing key", "ok", f"none yet: the first run makes {key_file()}")
    told = f"{key_name()} ({fingerprint(public_key())[:16]})"
    if ws is not None and settings is not None:
        from tasks.registry.place import database
        from tasks.registry.publishing import check_may_register
        from tasks.registry.tracking import is_embedded, tracking

        if not is_embedded(ws) or database(ws).exists():
            with tracking(ws) as client:
                check_may_register(ws, client, settings.register_.model)
            told += f" may register versions of {settings.register_.model}"
    return Finding("signing key", "ok", told)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def finding_row(finding: Finding) -> Fitted:
    """A finding for a terminal; one below the other they are a table."""

    def build(width: int) -> "Table":
        from rich.markup import escape

        made = table(width, "", "", "")
        for column, characters in zip(made.columns, (len("MEND"), _LONGEST_NAME), strict=False):
            column.width = characters
        state = "MEND" if finding.state == "mend" else finding.state
        made.add_row(state, finding.what, escape(plain(finding.found)))
        if finding.mend is not None:
            made.add_row("", "", escape(plain(f"mend: {finding.mend}")))
        return made

    return Fitted(build)
