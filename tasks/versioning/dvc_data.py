"""Data that DVC kept for another workspace, by digest: what `dass verify --replay` starts from."""

from collections.abc import Mapping
from pathlib import Path

from dass.errors import UnavailableError
from dass.files import write_json
from tasks.versioning.repository import quiet_dvc
from tasks.versioning.waits import bound_waits
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted


def pull(ws: Workspace, wanted: Mapping[str, str], folder: Path) -> None:
    """Check out files and folders that DVC knows by digest, from the workspace's cache or else its remote.

    Args:
        ws: whose cache and remotes are used; its own files are left alone.
        wanted: path inside `folder` -> DVC's md5.
        folder: an empty folder; becomes a DVC repository without git.

    Raises:
        UnavailableError: neither the cache nor the remote has the data.
    """
    quiet_dvc()
    from dvc.exceptions import CheckoutError, DvcException
    from dvc.repo import Repo

    with Repo(str(ws.root)) as here:
        bound_waits(here)
        cache = {"dir": here.cache.local_cache_dir}
        remotes, default = dict(here.config["remote"]), here.config["core"].get("remote")
    Repo.init(str(folder), no_scm=True).close()
    # Given, not written into a file: DVC's writer knows ASCII only. Resolved: relative urls are of `ws`.
    config = {"cache": cache, "remote": remotes, "core": {"remote": default} if default else {}}
    for path, md5 in wanted.items():
        target = folder / f"{path}.dvc"
        write_json(target, {"outs": [{"md5": md5, "hash": "md5", "path": target.stem}]})  # JSON is YAML
    with Repo(str(folder), config=config) as repo:
        try:
            repo.checkout(force=True)
        except CheckoutError:
            try:
                repo.pull(force=True)
            except DvcException as error:
                told = " ".join(redacted(str(error)).split())[:200]
                where = f"remote {default}" if default else "no remote (dvc remote add)"
                raise UnavailableError(
                    f"DVC has not got {' and '.join(wanted)} of this version: not in the cache of {ws.root}, and "
                    f"{where} did not deliver ({told}). Run dvc push where it was made."
                ) from None
