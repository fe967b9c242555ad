"""MLflow's files that nothing registered needs: those of runs that failed, of deleted ones, masks of finished sweeps.

Runs keep their rows: settings, figures and reasons stay readable. Only what dass has made is looked at, and a location
is believed only where MLflow itself puts such files: rows are anybody's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dass.files import remove_whole, sha256_file
from tasks.disk.candidates import Candidate, Found, Left
from tasks.disk.needs import Needs
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.ledger_run import EXPERIMENT
from tasks.registry.place import artifacts, local_path
from tasks.registry.signing import SIGNATURE
from tasks.registry.tracking import is_embedded
from tasks.registry.versions import repository
from tasks.sweep.left import PARENT, POINT, SWEEP
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MASKS = "masks"
_SKIPPED = "dass leaves what lies outside the workspace's own mlartifacts alone"


@dataclass(frozen=True)
class _Place:
    """Where files of MLflow lie.

    Attributes:
        location: as MLflow has it.
        folder: on this machine; None: on a server.
    """

    location: str
    folder: Path | None


def unneeded_records(
    ws: Workspace, client: "MlflowClient", experiment: str, needs: Needs, *, sweeps: bool, deleted_versions: bool
) -> Found:
    """What MLflow holds and nothing registered needs.

    Args:
        ws: whose MLflow.
        client: of it.
        experiment: the name of the experiment that results go to; on a server no other one is looked at.
        needs: of every registered version.
        sweeps: also the masks of points of sweeps that came to their end.
        deleted_versions: also the files of versions that were deleted in MLflow, which a ledger still names.

    Raises:
        TrackingError: MLflow failed.
    """
    found = Found()
    experiments = _experiments(ws, client, experiment)
    if not experiments:
        return found
    runs = {str(run.info.run_id): run for run in _all_runs(client, experiments)}
    for run_id, run in runs.items():
        told = None if run_id in needs.runs else _unneeded(run, runs, sweeps)
        if told is not None:
            what, why, path = told
            location = f"{str(run.info.artifact_uri).rstrip('/')}{f'/{path}' if path else ''}"
            _add(found, ws, client, location, run_id, what, why)
        elif not sweeps and _is_finished_point(run, runs):
            _leave_once(found, "masks of finished sweeps", "asked to stay: leave --keep-sweeps out")
    for logged in _all_models(client, experiments):
        run = runs.get(str(logged.source_run_id))
        if logged.model_id in needs.models or run is None or not _is_ours(run) or run.info.status == "RUNNING":
            continue
        place = _place(ws, str(logged.artifact_location), logged.model_id)
        if place is None:
            _leave_once(found, "a model that MLflow places elsewhere", _SKIPPED)
        elif _signature(client, place) not in needs.signatures:
            what, why = "models that no version is", "their registration failed, or was cleared"
            _add(found, ws, client, place.location, logged.model_id, what, why, model=True)
        elif deleted_versions:
            what, why = "deleted versions", "they were deleted in MLflow; the ledger keeps their entries"
            _add(found, ws, client, place.location, logged.model_id, what, why, model=True)
        else:
            told_of = "the ledger names them, though they were deleted in MLflow: --deleted-versions frees them"
            _leave_once(found, "files of deleted versions", told_of)
    return found


def _experiments(ws: Workspace, client: "MlflowClient", experiment: str) -> list[str]:
    """Ids of the experiments that are looked at: of our own database all but the ledgers', deleted ones too."""
    if not is_embedded(ws):
        named = client.get_experiment_by_name(experiment)
        return [] if named is None else [str(named.experiment_id)]
    from mlflow.entities import ViewType

    pages = _pages(lambda token: client.search_experiments(view_type=ViewType.ALL, page_token=token))
    return [str(each.experiment_id) for each in pages if not each.name.startswith(EXPERIMENT)]


def _all_runs(client: "MlflowClient", experiments: list[str]) -> Iterator[Any]:
    from mlflow.entities import ViewType

    return _pages(lambda token: client.search_runs(experiments, run_view_type=ViewType.ALL, page_token=token))


def _all_models(client: "MlflowClient", experiments: list[str]) -> Iterator[Any]:
    return _pages(lambda token: client.search_logged_models(experiments, page_token=token))


def _pages(ask: Any) -> Iterator[Any]:
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _is_ours(run: Any) -> bool:
    return ATTEMPT in run.data.tags or SWEEP in run.data.tags


def _unneeded(run: Any, runs: dict[str, Any], sweeps: bool) -> tuple[str, str, str] | None:
    """What of a run may go (in words), why, and which path below its files, "" for all; None: nothing."""
    if not _is_ours(run) or run.info.status in ("RUNNING", "SCHEDULED"):
        return None
    if run.info.lifecycle_stage != "active":
        return "files of deleted runs", "the run was deleted in MLflow, and no version was made by it", ""
    if SWEEP not in run.data.tags:
        is_over = run.info.status in ("FAILED", "KILLED")
        return ("files of failed runs", "the run ended badly and registered nothing", "") if is_over else None
    if sweeps and _is_finished_point(run, runs):
        return "masks of finished sweeps", "figures stay; dass run --from-sweep makes a version of a point", _MASKS
    return None


def _is_finished_point(run: Any, runs: dict[str, Any]) -> bool:
    """Whether a run is a point of a sweep that came to its end. One that goes on takes its points as they are."""
    tags = run.data.tags
    if run.info.lifecycle_stage != "active" or SWEEP not in tags or tags.get(POINT) == PARENT:
        return False
    above = runs.get(tags.get("mlflow.parentRunId", ""))
    return above is not None and above.info.lifecycle_stage == "active" and above.info.status == "FINISHED"


def _place(ws: Workspace, location: str, owner: str) -> _Place | None:
    """Where something's files lie; None: not where MLflow puts such a thing's, so they may be anybody's."""
    folder = local_path(location)
    if folder is None:
        parts = urlsplit(location).path.split("/")
        return _Place(location, None) if owner in parts and ".." not in parts else None
    whole, ours = folder.resolve(), artifacts(ws).resolve()
    is_there = whole.is_relative_to(ours) and owner in whole.relative_to(ours).parts
    return _Place(location, folder) if is_there and not folder.is_symlink() else None


def _add(
    found: Found,
    ws: Workspace,
    client: "MlflowClient",
    location: str,
    owner: str,
    what: str,
    why: str,
    *,
    model: bool = False,
) -> None:
    place = _place(ws, location, owner)
    if place is None:
        _leave_once(found, "files that MLflow places elsewhere", _SKIPPED)
        return
    folder = place.folder

    def remove() -> None:
        if folder is not None:
            remove_whole(folder)
        else:
            repository(client, location).delete_artifacts()
        if model:
            client.delete_logged_model(owner)

    if folder is not None:
        if model or (folder.is_dir() and any(folder.iterdir())):
            found.candidates.append(Candidate("MLflow", what, why, str(folder), remove, (folder,)))
        return
    size, files = _remote_size(repository(client, location))
    if files or model:
        found.candidates.append(Candidate("MLflow", what, why, location, remove, bytes=size))


def _remote_size(there: Any, path: str | None = None) -> tuple[int, int]:
    """Bytes and number of files at a location on a server."""
    size = files = 0
    for each in there.list_artifacts(path):
        more = _remote_size(there, each.path) if each.is_dir else (each.file_size or 0, 1)
        size, files = size + more[0], files + more[1]
    return size, files


def _signature(client: "MlflowClient", place: _Place) -> str | None:
    """sha256 of the signature that lies at a place; None: there is none."""
    if place.folder is not None:
        file = place.folder / SIGNATURE
        return sha256_file(file) if file.is_file() and not file.is_symlink() else None
    from pathlib import PurePosixPath
    from tempfile import TemporaryDirectory

    there = repository(client, place.location)
    beside = [each.path for each in there.list_artifacts(str(PurePosixPath(SIGNATURE).parent))]
    if SIGNATURE not in beside:
        return None
    with TemporaryDirectory() as scratch:
        return sha256_file(Path(there.download_artifacts(SIGNATURE, scratch)))


def _leave_once(found: Found, what: str, why: str) -> None:
    if not any(each.what == what for each in found.left):
        found.left.append(Left("MLflow", what, why))
