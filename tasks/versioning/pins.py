"""dass.lock.json: what the settings resolved to when a run first met them.

`sources` names, for each source, its uri and the very bytes behind it (below `tasks`, for each file of a zero-shot
task or its data set on the hub); `code` names the code of each stage, for workspaces whose dvc.yaml cannot point at
code files. Both are dependencies in dvc.yaml, so DVC sees a file or a program that changed.

A uri is pinned once, by the run that meets it, and then stands for those bytes: others are refused until `dass pin`.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import write_json
from tasks.sources.hub import HubId, RepoType
from tasks.sources.locate import changed_since, locate, uri_of
from tasks.sources.pinned import GROUPS, by_role, in_groups, pin, read_pins, setting_of
from tasks.sources.task_data import task_sources
from tasks.versioning.code import code_digest
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

SOURCES = ("model", "calibration", "evaluation")
ROLES = (*SOURCES, *GROUPS, "tasks")
"""What `sources` of dass.lock.json holds: a source each, named texts, and what zero-shot tasks read."""

logger = logging.getLogger("dass")


def refresh_pins(
    ws: Workspace, settings: Settings, code_of: Iterable[str] = (), root: Path | None = None
) -> dict[str, Any]:
    """Pin every source anew, digest the code of the stages in `code_of`, and write dass.lock.json if it differs.

    Args:
        root: the folder that relative paths of sources start from; None is the workspace.

    Raises:
        InputError: a source cannot be found.
    """

    def of(source: Source, role: str) -> dict[str, Any]:
        return {"uri": source.uri, **pin(source, root or ws.root, _repo_type(role))}

    tasks = task_sources(settings.evaluate)
    pins = {
        "sources": {
            **in_groups({role: of(source, role) for role, source in given_sources(settings).items()}),
            "tasks": {
                task: {split: of(each, "tasks") for split, each in sources.items()} for task, sources in tasks.items()
            },
        },
        "code": {stage: code_digest(stage) for stage in sorted(code_of)},
    }
    if _current(ws) != pins:
        write_json(ws.lock_file, pins)
    return pins


def keep_pins(
    ws: Workspace, settings: Settings, roles: Iterable[str] = ROLES, code_of: Iterable[str] | None = None
) -> dict[str, Any]:
    """Pin those sources whose uri is new, each in one line of the log, and compare the others with their pins.

    Args:
        roles: which sources.
        code_of: the stages whose code is digested anew; None leaves what is said of code.

    Raises:
        InputError: a source cannot be found, holds other bytes than were pinned for its uri, or dass.lock.json cannot
            be read.
    """
    before = read_pins(ws) if ws.lock_file.exists() else {"sources": {}, "code": {}}
    given, asked = given_sources(settings), list(roles)
    # A text that params.yaml does not name any more is forgotten.
    sources = {role: was for role, was in by_role(before["sources"]).items() if role in given}
    tasks = before["sources"].get("tasks", {})
    for role, source in given.items():
        if role.partition(".")[0] in asked:
            known = _known(sources, role, source)
            sources[role] = _kept_pin(ws, setting_of(role), source, sources.get(role), known, _repo_type(role))
    if "tasks" in asked:
        tasks = _kept_tasks(ws, settings, tasks)
    code = before["code"] if code_of is None else {stage: code_digest(stage) for stage in sorted(code_of)}
    pins = {"sources": {**in_groups(sources), "tasks": tasks}, "code": code}
    if pins != before or not ws.lock_file.exists():
        write_json(ws.lock_file, pins)
    return pins


def _kept_tasks(ws: Workspace, settings: Settings, before: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for task, splits in task_sources(settings.evaluate).items():
        kept[task] = {}
        for split, source in splits.items():
            was = before.get(task, {}).get(split)
            known = _same_uri(was, source)
            kept[task][split] = _kept_pin(ws, f"sources.tasks.{task}.{split}", source, was, known, _repo_type("tasks"))
    return kept


def _kept_pin(
    ws: Workspace,
    name: str,
    source: Source,
    was: dict[str, Any] | None,
    known: dict[str, Any] | None,
    repo_type: RepoType,
) -> dict[str, Any]:
    """A source's pin, told when it is new: `was` is what stood in its place, `known` what its uri was pinned to."""
    now = {"uri": source.uri, **_kept(source, known, ws.root, repo_type)}
    if was is None or {**was, "uri": source.uri} != now or was.get("uri", source.uri) != source.uri:
        stands_for = f"commit {now['revision']}" if now["revision"] else f"sha256 {now['sha256']}"
        logger.info("%s: %s pinned: %s is %s", ws.lock_file.name, name, uri_of(source), stands_for)
    return now


def _kept(source: Source, known: dict[str, Any] | None, root: Path, repo_type: RepoType) -> dict[str, str | None]:
    """What a source stands for, when `known` is what its uri was pinned to before."""
    if known is None or source.sha256 is not None:  # a digest in params.yaml is a promise of its own
        return pin(source, root, repo_type)
    if known["revision"] is not None and isinstance(locate(source, root), HubId):
        return known  # a branch may have moved; its commit is still there
    found = pin(source, root, repo_type)
    if found != known:
        raise changed_since(source, found["sha256"] or str(found["revision"]), known["sha256"] or known["revision"])
    return found


def _known(sources: dict[str, dict[str, Any]], role: str, source: Source) -> dict[str, Any] | None:
    """What the uri was pinned to, for this role or for another that reads the same kind of thing."""
    alike = [role, *(other for other in sources if _repo_type(other) == _repo_type(role))]
    return next((same for other in alike if (same := _same_uri(sources.get(other), source))), None)


def _same_uri(pinned: dict[str, Any] | None, source: Source) -> dict[str, Any] | None:
    if pinned is None or pinned.get("uri") != source.uri:
        return None
    return {"sha256": pinned["sha256"], "revision": pinned["revision"]}


def given_sources(settings: Settings) -> dict[str, Source]:
    """Every source that the settings name, by its role, but for what zero-shot tasks read."""
    named: dict[str, Source] = {role: getattr(settings.sources, role) for role in SOURCES}
    named |= {f"texts.{name}": source for name, source in settings.evaluate.texts.items()}
    return named | {f"calibration_texts.{name}": source for name, source in settings.calibration.texts.items()}


def _repo_type(role: str) -> RepoType:
    return "model" if role == "model" else "dataset"


def _current(ws: Workspace) -> dict[str, Any] | None:
    try:
        return read_pins(ws)
    except InputError:
        return None
