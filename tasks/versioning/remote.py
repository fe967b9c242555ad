"""The DVC remote that `dvc push` sends a workspace's data to: is there one, and does it answer."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from dass.errors import InfrastructureError, InputError
from tasks.sources.waiting import in_time
from tasks.versioning.stages import quiet_dvc
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted, shown_address

_PORTS = {"http": 80, "https": 443}


def asked_remote(ws: Workspace, seconds: float) -> tuple[str, bool] | None:
    """Ask the default remote whether its folder is there.

    Args:
        ws: whose remote.
        seconds: how long it may take.

    Returns:
        Its name and address, and whether anything was pushed there yet; None: the workspace has no default remote.

    Raises:
        InputError: DVC's configuration cannot be used.
        InfrastructureError: the remote does not answer. Names it.
    """
    quiet_dvc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    told = "DVC's remote"
    try:
        with Repo(str(ws.root)) as repo:
            name = repo.config["core"].get("remote")
            if name is None:
                return None
            told = f"{name}, {shown_address(str(repo.config['remote'].get(name, {}).get('url', 'no url')))}"
            _knock(str(repo.config["remote"].get(name, {}).get("url", "")), seconds)
            remote = repo.cloud.get_remote()
            return told, bool(in_time(lambda: remote.fs.exists(remote.path), seconds))
    except DvcException as error:
        raise InputError(f"DVC cannot use {told}: {_one_line(error)}. Run: dvc remote list") from None
    except Exception as error:  # whatever a store's driver raises
        raise InfrastructureError(
            f"{told} does not answer: {_one_line(error)}. Correct its address or login: dvc remote modify"
        ) from None


def _knock(url: str, seconds: float) -> None:
    """A web server that is not there: fsspec would call that a folder that does not exist."""
    parts = urlsplit(url)
    if parts.scheme in _PORTS and parts.hostname and not getproxies():
        socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), timeout=seconds).close()


def _one_line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:300]
