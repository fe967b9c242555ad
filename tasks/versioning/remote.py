"""The DVC remotes that a workspace's data is sent to: which are there, and do they answer."""

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from dass.errors import InfrastructureError, InputError
from tasks.sources.waiting import in_time
from tasks.versioning.repository import quiet_dvc
from tasks.versioning.waits import connect_anew
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted, shown_address

if TYPE_CHECKING:
    from dvc.repo import Repo

_PORTS = {"http": 80, "https": 443, "ssh": 22}
_SECONDS = 30.0
_EXTRAS = ("s3", "ssh", "gs", "azure")
"""Kinds of remote whose driver is a package of its own: dvc-s3, dvc-ssh and so on."""


def remotes_of(ws: Workspace, names: list[str] | None) -> dict[str, str]:
    """The remotes that a run sends its data to.

    Args:
        ws: whose.
        names: setting register.remotes; None takes the default remote, if there is one.

    Returns:
        Name -> address as it may be shown.

    Raises:
        InputError: there is no remote of such a name, or DVC's configuration cannot be used.
    """
    if names == []:
        return {}
    quiet_dvc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(ws.root)) as repo:
            known = repo.config["remote"]
            default = repo.config["core"].get("remote")
            if names is None:
                names = [] if default is None else [default]
            told = "the default remote is" if names == [default] else "register.remotes names"
            for name in names:
                if name not in known:
                    raise InputError(
                        f"{told} {name!r}, and DVC knows {', '.join(sorted(known)) or 'no remote'}. "
                        f"Run: dvc remote add {name} URL"
                    )
            return {name: _address(repo, name) for name in dict.fromkeys(names)}
    except DvcException as error:
        raise InputError(f"DVC cannot use its remotes: {_one_line(error)}. Run: dvc remote list") from None


def check_remotes(ws: Workspace, names: list[str] | None) -> None:
    """Have every remote answer that a run pushes to: before its work, not behind it.

    Args:
        ws: whose.
        names: as `remotes_of`.

    Raises:
        InputError: a remote cannot be used as it is configured.
        InfrastructureError: one does not answer.
    """
    for name in remotes_of(ws, names):
        ask_remote(ws, name, _SECONDS)


def ask_remote(ws: Workspace, name: str, seconds: float) -> bool:
    """Ask a remote whether its folder is there.

    Args:
        ws: whose remote.
        name: a remote that DVC knows.
        seconds: how long it may take.

    Returns:
        Whether anything was pushed there yet.

    Raises:
        InputError: DVC cannot use the remote as it is configured, or a package is missing that speaks to its kind.
        InfrastructureError: it does not answer. Names it.
    """
    quiet_dvc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    told = name
    connect_anew()
    try:
        with Repo(str(ws.root)) as repo:
            url = str(repo.config["remote"][name].get("url", ""))
            told = f"{name}, {_address(repo, name)}"
            _check_driver(url, told)
            _knock(url, repo.config["remote"][name].get("port"), seconds)
            return bool(in_time(lambda: _is_there(repo, name), seconds))
    except InputError:
        raise
    except DvcException as error:
        raise InputError(f"DVC cannot use {told}: {_one_line(error)}. Run: dvc remote list") from None
    except Exception as error:  # whatever a store's driver raises
        raise InfrastructureError(
            f"{told} does not answer: {_one_line(error)}. Correct its address or login: dvc remote modify"
        ) from None


def _is_there(repo: "Repo", name: str) -> bool:
    remote = repo.cloud.get_remote(name)
    return bool(remote.fs.exists(remote.path))


def _address(repo: "Repo", name: str) -> str:
    return shown_address(str(repo.config["remote"].get(name, {}).get("url", "no url")))


def _check_driver(url: str, told: str) -> None:
    """Raise InputError where the kind of remote needs a package that is not there: DVC's own line speaks of conda."""
    from importlib.util import find_spec

    scheme = urlsplit(url).scheme
    if scheme in _EXTRAS and find_spec(f"dvc_{scheme}") is None:
        ours = f"pip install 'dass[{scheme}]'" if scheme in ("s3", "ssh") else f"pip install dvc-{scheme}"
        raise InputError(f"{told}: dvc-{scheme}, which speaks to it, is not installed. Run: {ours}")


def _knock(url: str, port: object, seconds: float) -> None:
    """A server that is not there: fsspec would call that a folder that does not exist, and ssh waits for minutes."""
    parts = urlsplit(url)
    if parts.scheme in _PORTS and parts.hostname and not getproxies():
        at = parts.port or (int(str(port)) if port else _PORTS[parts.scheme])
        socket.create_connection((parts.hostname, at), timeout=seconds).close()


def _one_line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:300]
