"""What a source in params.yaml stands for: a local path, a file inside a package-index wheel, or a hub id.

What is read from it is compared with what params.yaml and dass.lock.json promise, before anything is made from it.
"""

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.outputs import lies_in
from tasks.sources.downloads import SCHEME, fetch_wheel_files
from tasks.sources.hub import HubId
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source

logger = logging.getLogger("dass")

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")

_ENDINGS = (".gguf", ".txt", ".utf8", ".jsonl", ".json", ".csv", ".tsv", ".gz", ".zst", ".parquet", ".safetensors")


def uri_of(source: Source) -> str:
    """As messages name it."""
    return source.uri if isinstance(source.uri, str) else " + ".join(source.uri)


def locate(source: Source, root: Path) -> Path | HubId:
    """Resolve a uri to a local path (a wheel's file is fetched) or a hub id. What exists locally goes first.

    Raises:
        InputError: it is neither, lies among the stages' own artifacts, or the wheel cannot be had.
    """
    uris = [source.uri] if isinstance(source.uri, str) else source.uri
    if uris[0].startswith(SCHEME):
        assert source.sha256 is not None, "settings refuse a wheel without a digest"
        return fetch_wheel_files(uris, source.sha256)
    path = root / Path(uris[0]).expanduser()
    if path.is_file() or path.is_dir():
        if lies_in(path, Workspace(root).base.parent):
            raise InputError(f"{path} lies in artifacts/, whose folders the stages replace: put the source elsewhere.")
        tell_which(uris[0], path)
        return path
    if path.exists():
        raise InputError(f"{path} is a pipe or a device, which may never end: expected a file or a folder.")
    match = _on_hub(uris[0])
    if match is None:
        raise InputError(
            f"There is no {path}. Expected a path that exists, a hub id (org/name@revision) or "
            "pypi://DIST==VERSION/PATH/IN/WHEEL."
        )
    return HubId(match["repo"], match["revision"])


def is_local(uri: str, root: Path) -> bool:
    """Whether a uri is a path that exists, taken from a root where it is relative."""
    path = root / Path(uri).expanduser()
    return not uri.startswith(SCHEME) and path.exists()


@cache
def tell_which(uri: str, path: Path) -> None:
    """Say once that a name which may be a repository of the hub was taken for a path here."""
    if _on_hub(uri) and "@" not in uri:
        logger.warning(f"{uri} is {path} here, not the hub's {uri}. For that one write {uri}@main")


def _on_hub(uri: str) -> re.Match[str] | None:
    match = _HUB.fullmatch(uri)
    return None if match is None or Path(match["repo"]).suffix in _ENDINGS else match


def check_model_file(source: Source, file: Path) -> None:
    """Raise InputError when a file is no GGUF file: the only kind of file that a model is read from."""
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise InputError(
                f"{uri_of(source)} is no GGUF file: expected one, or a folder with config.json and safetensors."
            )


def check_digest(source: Source, found: str, pin_: dict[str, Any] | None) -> None:
    """Raise InputError when a source's digest is not the one params.yaml or dass.lock.json (`pin_`) promises."""
    if source.sha256 is not None and source.sha256 != found:
        raise InputError(
            f"{uri_of(source)} has sha256 {found}, expected {source.sha256}. "
            "If the new content is meant, change sha256 in params.yaml."
        )
    expected = (pin_ or {}).get("sha256")
    if expected is not None and expected != found:
        raise changed_since(source, found, expected)


def changed_since(source: Source, found: str, expected: str) -> InputError:
    """The error of a source that is not what its uri was pinned to."""
    return InputError(
        f"{uri_of(source)} is {found}, but dass.lock.json says {expected}: it changed since. "
        "If the new content is meant, run: dass pin"
    )
