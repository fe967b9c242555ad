"""The page as a file: whether it is one of ours, and whose. Read from its first lines; torch is not imported here."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dass.errors import InputError
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from tasks.registry.registration import Registration

GENERATOR = "dass report"
"""What a page calls its maker; the version of dass stands behind it."""
NAME = "report.html"
_HEAD = 4096


def is_drawn(ws: Workspace, registered: "Registration") -> bool:
    """Whether plots/report.html is the page of that version."""
    head = _head(ws.report)
    title = f"<title>{escape(registered.model)} version {escape(registered.version)}</title>"
    return _is_page(head) and title in head.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def check_replaceable(path: Path) -> None:
    """Raise InputError when there is something at `path` that is not a page of ours."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file for the page, for example --output {path / NAME}")
    if path.exists() and not _is_page(_head(path)):
        raise InputError(f"{path} is there, and is no page of dass report. Name another file with --output.")


def _is_page(head: str) -> bool:
    return f'<meta name="generator" content="{GENERATOR}' in head


def _head(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_HEAD).decode(errors="replace")
