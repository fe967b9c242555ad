"""What dass.lock.json says of the sources: the very bytes that stood behind each uri when the run began."""

from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import digest_of, read_json
from tasks.sources.checkpoint_folder import checkpoint_files
from tasks.sources.hub import HubId, RepoType, commit_of
from tasks.sources.locate import locate, uri_of
from tasks.workspace.digests import known_digests
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source

GROUPS = {"texts": "evaluate.texts", "calibration_texts": "calibration.texts"}
"""Sources that have names of their own, "GROUP.NAME" as a role: the setting that holds each group."""


def setting_of(role: str) -> str:
    """Which setting names a role's source."""
    group, _, name = role.partition(".")
    return f"{GROUPS[group]}.{name}" if name else f"sources.{role}"


def read_pins(ws: Workspace) -> dict[str, Any]:
    """The content of dass.lock.json.

    Raises:
        InputError: it is missing or not JSON.
    """
    try:
        pins = read_json(ws.lock_file)
        return {"sources": dict(pins["sources"]), "code": dict(pins["code"])}
    except FileNotFoundError:
        raise InputError(
            f"No {ws.lock_file.name} in {ws.root}: nothing says which bytes the sources are. Run: dass pin"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{ws.lock_file} cannot be read. Delete it and run: dass pin") from None


def pinned(ws: Workspace, role: str, source: Source) -> dict[str, Any]:
    """What dass.lock.json says of a source: {"uri", "sha256", "revision"}.

    Args:
        ws: whose lock file.
        role: "model", "calibration", "evaluation", "texts.NAME" or "calibration_texts.NAME".
        source: the source that the settings name for it; a pin of another uri says nothing of this one.

    Raises:
        InputError: there is no lock file, or it does not name this source.
    """
    pin_ = by_role(read_pins(ws)["sources"]).get(role, {})
    if pin_.get("uri") != source.uri:
        raise InputError(f"{ws.lock_file.name} does not name {uri_of(source)} for {setting_of(role)}. Run: dass pin")
    return dict(pin_)


def by_role(sources: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What dass.lock.json says of each source, without its groups: "GROUP.NAME" is one role. Tasks are left out."""
    named = {f"{group}.{name}": pin_ for group in GROUPS for name, pin_ in sources.get(group, {}).items()}
    return {role: pin_ for role, pin_ in sources.items() if role not in (*GROUPS, "tasks")} | named


def in_groups(pins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The opposite of `by_role`. Every group is there, so that DVC finds it."""
    sources: dict[str, Any] = {role: pin_ for role, pin_ in pins.items() if "." not in role}
    for group in GROUPS:
        sources[group] = {role.partition(".")[2]: pins[role] for role in pins if role.startswith(f"{group}.")}
    return sources


def pin(source: Source, root: Path = Path(), repo_type: RepoType = "model") -> dict[str, str | None]:
    """The very bytes a source stands for now: {"sha256", "revision"}.

    Raises:
        InputError: the source cannot be found.
    """
    if source.sha256 is not None:  # a promise already: whoever reads the source checks it
        return {"sha256": source.sha256, "revision": None}
    where = locate(source, root)
    if isinstance(where, HubId):
        return {"sha256": None, "revision": commit_of(where, repo_type)}
    if where.is_dir():
        return {
            "sha256": digest_of({name: known_digests(path).sha256 for name, path in checkpoint_files(where).items()}),
            "revision": None,
        }
    return {"sha256": known_digests(where).sha256, "revision": None}
