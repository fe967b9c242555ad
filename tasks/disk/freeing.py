"""`dass gc`: everything that nothing registered, committed or unfinished needs, in three stores; then freeing it.

What is needed is read anew right before anything is removed, while nobody else can work in the workspace: only what was
shown goes, and only what is still unneeded then.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.disk.candidates import Candidate, Found, Left, Store
from tasks.disk.needs import Needs, check_stores, needs_of, stores_of
from tasks.disk.recorded import unneeded_records
from tasks.disk.unfinished import begun_points, begun_work
from tasks.disk.work import unneeded_work
from tasks.sweep.left import left_sweeps
from tasks.versioning.cache import Cache, named_by_git, own_cache, remove_objects, run_cache
from tasks.versioning.checkout import lease_file, standing
from tasks.versioning.git import is_shallow
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import take_lease
from tasks.workspace.lock import check_held, workspace_lock
from tasks.workspace.progress import progress
from tasks.workspace.settings import load_settings
from tasks.workspace.sizes import freed_by_removing

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("dass")

_FIRST_STAGES = ("artifacts/base", "artifacts/calibration", "artifacts/evaluation")
"""What an unfinished run or sweep begins with."""


@dataclass(frozen=True)
class Asked:
    """What may be freed.

    Attributes:
        sweeps: masks of finished sweeps, here and in MLflow.
        deleted_versions: files of versions that were deleted in MLflow, which a ledger still names.
        given_up: addresses of MLflow stores that are not asked though git remembers versions there.
    """

    sweeps: bool = True
    deleted_versions: bool = False
    given_up: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Things of one kind.

    Attributes:
        store, what, why: as of each of them.
        count: how many there are.
        bytes: that are free when all of them are gone.
    """

    store: Store
    what: str
    why: str
    count: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        return {"store": self.store, "what": self.what, "why": self.why, "count": self.count, "bytes": self.bytes}


@dataclass(frozen=True)
class Plan:
    """What would go, and what stays though it might be expected to go.

    Attributes:
        candidates: what nothing needs.
        rows: the same by store and kind, the largest first.
        bytes: that are free when everything is gone.
        left: what is left alone.
        needs: what registered versions need.
    """

    candidates: list[Candidate]
    rows: list[Row]
    bytes: int
    left: list[Left]
    needs: Needs

    @classmethod
    def of(cls, found: Found, needs: Needs) -> "Plan":
        """What was found, measured as it lies there now."""
        kinds: dict[tuple[Store, str, str], list[Candidate]] = {}
        for each in found.candidates:
            kinds.setdefault((each.store, each.what, each.why), []).append(each)
        rows = [Row(*kind, len(of), _bytes(of)) for kind, of in kinds.items()]
        rows.sort(key=lambda row: -row.bytes)
        return cls(found.candidates, rows, _bytes(found.candidates), found.left, needs)

    @property
    def names(self) -> set[tuple[str, str]]:
        """What each candidate is known by."""
        return {(each.store, each.name) for each in self.candidates}

    def as_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "rows": [row.as_json() for row in self.rows],
            "left": [each.as_json() for each in self.left],
            "versions": self.needs.versions,
        }


@dataclass(frozen=True)
class Freed:
    """What was done.

    Attributes:
        bytes: that were freed.
        count: how many things went.
        failed: what could not be removed, and why.
        kept: how many things that were shown are needed by now.
    """

    bytes: int
    count: int
    failed: list[str]
    kept: int

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "count": self.count, "failed": self.failed, "kept": self.kept}


def look(ws: Workspace, asked: Asked) -> Plan:
    """Find out what nothing needs. Nothing is removed.

    Raises:
        InputError: somebody works in the workspace, or what is needed cannot be judged: DVC's or git's records cannot
            be read, or git remembers versions in another store.
        BrokenLedger, SignatureError, UnavailableError: a ledger does not verify, or a version is not what was signed.
        TrackingError: MLflow cannot be reached.
    """
    with _alone(ws), stores_of(ws) as clients, own_cache(ws) as cache:
        return _plan(ws, clients, cache, asked)


def free(ws: Workspace, asked: Asked, shown: Collection[tuple[str, str]] | None = None) -> Freed:
    """Remove what nothing needs now.

    Args:
        ws: where.
        asked: what may be freed.
        shown: only what is among these, as `Plan.names`; None: everything.

    Raises:
        As `look`. Nothing was removed then.
        LeaseLostError: another run has taken the workspace over. What was removed till then was not needed.
    """
    with _alone(ws), stores_of(ws) as clients, own_cache(ws) as cache:
        plan = _plan(ws, clients, cache, asked)
        going = [each for each in plan.candidates if shown is None or (each.store, each.name) in shown]
        kept = 0 if shown is None else len(set(shown) - plan.names)
        gone: list[Candidate] = []
        failed = []
        freed = _bytes(going)
        for each in progress(going, "free"):
            check_held(ws)
            try:
                each.remove()
                gone.append(each)
            except (OSError, NotImplementedError) as error:
                failed.append(f"{each.name}: {error}")
        if failed:
            left = sum(each.bytes for each in going if each not in gone)
            freed -= left + sum(freed_by_removing(each.paths) for each in going if each not in gone)
        return Freed(freed, len(gone), failed, kept)


@contextmanager
def _alone(ws: Workspace) -> Iterator[None]:
    """Nobody works in the workspace or its checkout meanwhile, and a schedule's run waits or is refused."""
    with ExitStack() as until_done:
        until_done.enter_context(workspace_lock(ws))
        there = standing(ws)
        if there is not None:
            lease = take_lease(lease_file(ws), f"The checkout of {ws.root}")
            until_done.callback(lease.release)
            until_done.enter_context(workspace_lock(there))
        yield


def _plan(ws: Workspace, clients: list["MlflowClient"], cache: Cache | None, asked: Asked) -> Plan:
    check_stores(ws, asked.given_up)
    needs, there = needs_of(ws, clients), standing(ws)
    places = [ws, *([there] if there is not None else [])]
    experiment = load_settings(ws.params).register_.experiment
    stopped = _stopped_sweeps(ws, clients, experiment)
    found = Found(left=stopped)
    for place in places:
        found.add(unneeded_work(place, needs, sweeping=bool(stopped), sweeps=asked.sweeps))
    begun = [each for place in places for each in begun_work(place, needs.fingerprints)]
    found.add(_unneeded_objects(ws, cache, needs, unfinished=bool(begun or stopped)))
    for client in clients[:1]:
        found.add(
            unneeded_records(
                ws, client, experiment, needs, sweeps=asked.sweeps, deleted_versions=asked.deleted_versions
            )
        )
    return Plan.of(found, needs)


def _stopped_sweeps(ws: Workspace, clients: list["MlflowClient"], experiment: str) -> list[Left]:
    """Sweeps that may go on: those that MLflow has as stopped, and points with work and no end."""
    goes_on = "it was stopped: the same dass sweep goes on with it"
    names = [begun.what for begun in begun_points(ws)]
    for client in clients[:1]:
        named = client.get_experiment_by_name(experiment)
        if named is not None:
            names += [f"sweep {each.name}" for each in left_sweeps(client, str(named.experiment_id))]
    return [Left("work", name, goes_on) for name in names]


def _unneeded_objects(ws: Workspace, cache: Cache | None, needs: Needs, *, unfinished: bool) -> Found:
    if cache is None:
        told = "it lies outside the workspace, where others may use it: dvc gc there"
        return Found(left=[Left("DVC cache", "DVC's cache", told)])
    named, made = needs.data | named_by_git(ws), run_cache(ws)
    if unfinished:
        named |= {digest for digest, path in made.items() if path in _FIRST_STAGES}
    kept, kind = cache.with_contents(named), _kinds(cache, made)
    why = "no version, commit or work tree names it; a run that wants it makes it again"
    candidates = [
        Candidate("DVC cache", kind.get(digest, "objects"), why, str(path), _removing(path), (path,))
        for digest, path in cache.objects.items()
        if digest not in kept
    ]
    candidates.sort(key=lambda each: not each.name.endswith(".dir"))  # then DVC knows that a folder is gone
    found = Found(candidates)
    if is_shallow(ws.root):
        told = "git was cloned without its whole history, and names only what it has of it"
        found.left.append(Left("DVC cache", "commits that are not here", told))
    return found


def _removing(path: Path) -> Any:
    return lambda: remove_objects([path])


def _kinds(cache: Cache, made: dict[str, str]) -> dict[str, str]:
    """Digest -> "artifacts/pruned of earlier results" and the like, as far as DVC's run-cache remembers."""
    kinds: dict[str, str] = {}
    for digest, path in made.items():
        try:
            of = cache.with_contents([digest])
        except InputError:  # a damaged list of something that nothing needs
            of = {digest}
        for each in of:
            kinds.setdefault(each, f"{path} of earlier results")
    return kinds


def _bytes(candidates: list[Candidate]) -> int:
    return freed_by_removing({path: None for each in candidates for path in each.paths}) + sum(
        each.bytes for each in candidates
    )
