"""What the stages made goes to DVC's remotes before it is registered: no version whose data cannot be pulled.

DVC sends file by file, so what was cut off goes on with the files that are missing. DVC takes a file that bears the
right name for whole, and a folder whose list is there for complete; here every file's size is asked for, and what is
missing or cut off is sent again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dass.errors import InfrastructureError, InputError
from dass.files import read_json, write_json
from tasks.versioning.repository import dvc_repo, name_of, patiently, stages_of
from tasks.versioning.stillness import ended_when_still
from tasks.versioning.waits import connect_anew
from tasks.workspace.folder import Workspace
from tasks.workspace.patience import answer_seconds
from tasks.workspace.progress import working
from tasks.workspace.redaction import redacted

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB


def push(ws: Workspace, remotes: Mapping[str, str]) -> None:
    """Send the outputs of all stages, as dvc.lock names them, to every remote that has not got them.

    Args:
        ws: every stage has run.
        remotes: name -> address, as `remotes_of`.

    Raises:
        InfrastructureError: a remote does not take them. What was sent stays there, and the next call goes on.
    """
    for name, address in remotes.items():
        with dvc_repo(ws) as repo:
            recorded = _recorded(repo)
            if _noted(ws).get(name) == _note(address, recorded):
                continue
            connect_anew()
            with working(f"Pushing to {name}"):
                _push(repo, name, address)
            write_json(_file(ws), _noted(ws) | {name: _note(address, recorded)})


def is_pushed(ws: Workspace, remotes: Mapping[str, str]) -> bool:
    """Whether this workspace has sent what dvc.lock names to all of these remotes. They are not asked."""
    if not remotes:
        return True
    with dvc_repo(ws) as repo:
        recorded = _recorded(repo)
    return all(_noted(ws).get(name) == _note(address, recorded) for name, address in remotes.items())


def _push(repo: "Repo", name: str, address: str) -> None:
    try:
        with ended_when_still(answer_seconds()):
            broken = _sent(repo, name)
    except InputError:  # DVC is busy
        raise
    except Exception as error:  # whatever a store's driver raises
        told = redacted(" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:300]
        raise InfrastructureError(
            f"DVC's remote {name} ({address}) did not take the data: {told}. Nothing is registered, and all that was "
            "made is kept: run again when it answers, or go without it by: -S register.remotes=[]"
        ) from None
    if broken:
        raise InfrastructureError(
            f"DVC's remote {name} ({address}) has not got {len(broken)} of the files that were sent, or cut off "
            f"({broken[0][0]}). Nothing is registered, and all that was made is kept: look at the store, and run again."
        )


def _sent(repo: "Repo", name: str) -> list[tuple[str, int | None]]:
    """Send a remote what it has not got. Returns what it still has not, as `_differing`."""

    def send() -> None:
        patiently(repo, lambda: repo.push(targets=[str(Path(repo.root_dir) / "dvc.yaml")], remote=name))

    remote = repo.cloud.get_remote(name)
    if remote.fs.version_aware or remote.worktree:
        send()  # files by their own names, which DVC compares by the store's checksums
        return []
    wanting = _differing(repo, remote.odb)
    for oid, size in wanting:
        if size is not None:
            remote.odb.delete(oid)  # cut off
    for oid in _lists_with(repo, {oid for oid, _ in wanting}):
        if _size(remote.odb, oid) is not None:
            remote.odb.delete(oid)
    send()
    broken = _differing(repo, remote.odb)
    if broken:
        _forget_known(repo, remote.odb)
        send()
        broken = _differing(repo, remote.odb)
    return broken


def _differing(repo: "Repo", there: "HashFileDB") -> list[tuple[str, int | None]]:
    """The stages' files that a remote has not got in their full size: digest, and bytes there; None: it has none."""
    here = repo.cache.local
    found = [(oid, _size(there, oid)) for oid in _files(repo)]
    return [(oid, size) for oid, size in found if size != here.fs.info(here.oid_to_path(oid))["size"]]


def _size(odb: "HashFileDB", oid: str) -> int | None:
    try:
        return int(odb.fs.info(odb.oid_to_path(oid))["size"])
    except FileNotFoundError:
        return None


def _lists_with(repo: "Repo", oids: set[str]) -> list[str]:
    """DVC's lists of folders that hold one of these files. Where a remote has a folder's list, DVC believes that it has
    the files, too, and sends none."""
    outs = [out for stage in stages_of(repo) for out in stage.outs if out.hash_info and out.hash_info.isdir]
    trees = [(out.hash_info.value, out.get_obj()) for out in outs]
    return [oid for oid, tree in trees if tree is not None and any(info.value in oids for _, _, info in tree)]


def _forget_known(repo: "Repo", there: "HashFileDB") -> None:
    """Have DVC look what a remote holds: it notes folders that it has sent, and believes that they stay there."""
    from dvc_data.hashfile.db import get_index

    index = get_index(there)
    index.clear()
    index.close()
    repo.drop_data_index()


def _files(repo: "Repo") -> list[str]:
    """Digests of all files that the stages made, and of DVC's lists of folders."""
    found: dict[str, None] = {}
    for stage in stages_of(repo):
        for out in stage.outs:
            if not (out.use_cache and out.can_push and out.hash_info):
                continue
            tree = out.get_obj()
            found[out.hash_info.value] = None
            if out.hash_info.isdir and tree is not None:
                found |= {info.value: None for _, _, info in tree}
    return list(found)


def _recorded(repo: "Repo") -> dict[str, str]:
    outs = (out for stage in stages_of(repo) for out in stage.outs if out.use_cache and out.hash_info)
    return {name_of(out): out.hash_info.value for out in outs}


def _note(address: str, recorded: Mapping[str, str]) -> dict[str, object]:
    return {"address": address, "outs": dict(recorded)}


def _noted(ws: Workspace) -> dict[str, object]:
    path = _file(ws)
    found: dict[str, object] = read_json(path) if path.exists() else {}
    return found


def _file(ws: Workspace) -> Path:
    return ws.private / "pushed.json"
