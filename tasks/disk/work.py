"""Folders of .dass whose work has come to its end: registered results and finished sweeps need none of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dass.files import clear_leftovers, leftovers, read_json, remove_whole
from tasks.disk.candidates import Candidate, Found, Left
from tasks.disk.needs import Needs
from tasks.disk.unfinished import begun_work
from tasks.sweep.records import SWEEP
from tasks.workspace.folder import Workspace


def unneeded_work(ws: Workspace, needs: Needs, *, sweeping: bool, sweeps: bool) -> Found:
    """What of a place's working folders nothing needs. Call while nobody works there.

    Args:
        ws: the workspace, or its checkout.
        needs: of every registered version.
        sweeping: whether a sweep was stopped and may go on.
        sweeps: also masks of sweeps that came to their end, with the records of their points.
    """
    found = Found()
    for folder in _halves(ws):
        for path in leftovers(folder):
            why = "the process that wrote it is gone"
            remove = partial(clear_leftovers, folder)
            found.candidates.append(Candidate("work", "half-written files", why, str(path), remove, (path,)))
    for folder in _inside(ws.private / "work"):
        if folder.name in needs.fingerprints:
            _add(found, folder, "work of finished runs", "its result is registered")
    begun = begun_work(ws, needs.fingerprints)
    found.left += [Left("work", each.what, "not registered yet: the same settings go on behind it") for each in begun]
    if begun or sweeping:
        if any(_inside(ws.statistics)):
            found.left.append(Left("work", "statistics of dense models", "what is unfinished may read them"))
    else:
        for folder in _inside(ws.statistics):
            _add(found, folder, "statistics of dense models", "no run is unfinished; a run that wants them makes them")
    if sweeping or ws.keeper is not None:  # a checkout's sweeps are the workspace's
        return found
    for folder in _inside(ws.sweeps / "work"):
        _add(found, folder, "work of sweeps", "every point of it is finished")
    if sweeps:
        _add_masks(found, ws)
    elif any(_inside(ws.sweeps / "masks")):
        found.left.append(Left("work", "masks of finished sweeps", "asked to stay: leave --keep-sweeps out"))
    return found


def _halves(ws: Workspace) -> Iterator[Path]:
    """Where half-written files may lie: a run clears these when it starts."""
    sweeps = [] if ws.keeper is not None else [ws.sweeps, ws.sweeps / "masks", ws.sweeps / "work"]
    for folder in (ws.base.parent, ws.metrics, ws.plots, ws.private, ws.private / "work", ws.statistics, *sweeps):
        if folder.is_dir():
            yield folder
    for parent in (ws.private / "work", ws.statistics):
        yield from _inside(parent)


def _inside(parent: Path) -> list[Path]:
    return [
        path for path in sorted(parent.glob("*")) if path.is_dir() and not path.is_symlink() and path.name[0] != "."
    ]


def _add(found: Found, folder: Path, what: str, why: str) -> None:
    found.candidates.append(Candidate("work", what, why, str(folder), partial(remove_whole, folder), (folder,)))


def _add_masks(found: Found, ws: Workspace) -> None:
    """Masks of points, each behind the records that send a later sweep to them. Sweeps keep what they answer from."""
    if not any(ws.sweeps.glob(f"*/{SWEEP}")):
        return
    records: dict[str, list[Path]] = {}
    for path in sorted((ws.sweeps / "points").glob("*.json")):
        records.setdefault(str(read_json(path).get("fingerprint")), []).append(path)
    for folder in _inside(ws.sweeps / "masks"):
        named = records.get(folder.name, [])
        why = "figures and pages stay; a sweep that asks for such a point again prunes again"
        remove = partial(_remove_in_order, [*named, folder])
        found.candidates.append(
            Candidate("work", "masks of finished sweeps", why, str(folder), remove, (folder, *named))
        )


def _remove_in_order(paths: list[Path]) -> None:
    for path in paths:
        remove_whole(path)
