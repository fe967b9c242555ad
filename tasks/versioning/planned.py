"""What a run would do with each stage, and why: read from dvc.lock, the run-cache and the files, without doing it.

A stage behind one that would run is not looked up any further: what it reads is not there yet. Behind one that would be
restored it is, because the run-cache says what its outputs will be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.versioning.pins import keep_pins
from tasks.versioning.repository import dvc_repo, held, name_of, patiently, stages_of
from tasks.versioning.stage_code import check_code, stages_with_pinned_code
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

_SHOWN = 4  # settings of a section that changed; the others are counted


@dataclass(frozen=True)
class Planned:
    """What would become of one stage.

    Attributes:
        stage: its name.
        outcome: as a run would tell it, but in the present: nothing has run.
        why: what changed, is missing or will be made anew, a few words each; empty when nothing.
    """

    stage: str
    outcome: Literal["unchanged", "restored", "runs"]
    why: list[str]


def plan_stages(ws: Workspace, settings: Settings) -> list[Planned]:
    """What a run would do with every stage, in order. Call inside `workspace_lock`.

    Args:
        ws: with a folder `once`, where sources that are new are pinned: the workspace's own files stay as they are.
        settings: those of `ws.params`.

    Raises:
        InputError: a source is missing or not what it was pinned to, or dvc.yaml points at other code than runs here.
        VersioningError: DVC could not do its part.
    """
    with dvc_repo(ws) as repo:
        stages = stages_of(repo)
        keep_pins(ws, settings, code_of=stages_with_pinned_code(stages))
        for stage in stages:
            check_code(ws, stage)
        return patiently(repo, lambda: _planned(repo))


@dataclass(frozen=True)
class _Coming:
    """An output that will be made: by which stage, and DVC's hash and figures of it; None where only work will tell."""

    stage: str
    hash_info: Any
    meta: Any


def _planned(repo: "Repo") -> list[Planned]:
    with held(repo):
        coming: dict[str, _Coming] = {}
        return [_judged(repo, stage, coming) for stage in stages_of(repo)]


def _judged(repo: "Repo", stage: "PipelineStage", coming: dict[str, _Coming]) -> Planned:
    why = list(_reasons(stage, coming))
    if not why:
        return Planned(stage.name, "unchanged", [])
    known = _remembered(repo, stage, coming)
    for out in stage.outs:
        coming[out.fs_path] = _Coming(stage.name, *((None, None) if known is None else known[out.def_path]))
    return Planned(stage.name, "runs" if known is None else "restored", why)


def _reasons(stage: "PipelineStage", coming: Mapping[str, _Coming]) -> Iterator[str]:
    if not any(out.hash_info for out in stage.outs):
        yield "never ran" if not any(out.exists for out in stage.outs) else "dvc.lock knows no result of it"
        return
    if stage.changed_stage():
        yield "its command in dvc.yaml changed"
    for dep in stage.deps:
        made = coming.get(dep.fs_path)
        if made is not None:
            if made.hash_info is None or made.hash_info != dep.hash_info:
                yield f"{name_of(dep)} comes anew from {made.stage}"
        else:
            for name, what in dep.status().items():
                yield from _of_params(dep, what) if isinstance(what, dict) else [f"{name} {_WORDS.get(what, what)}"]
    for out in stage.outs:
        for name, what in out.status().items():
            yield f"{name} {_WORDS.get(what, what)}"


_WORDS = {"deleted": "is missing", "modified": "changed", "new": "is new", "not in cache": "is not in DVC's cache"}


def _of_params(dep: Any, changed: Mapping[str, str]) -> Iterator[str]:
    """Which values differ: of settings by name, of dass.lock.json in words."""
    before, now = dep.hash_info.value or {}, dep.read_params()
    if name_of(dep) != "params.yaml":
        for key in changed:
            kind, _, name = key.partition(".")
            yield f"the code of dass changed ({name})" if kind == "code" else f"other bytes behind {key}"
        return
    was, is_ = ({} if value is None else flat({key: value.get(key) for key in changed}) for value in (before, now))
    moved = [key for key in {**was, **is_} if was.get(key) != is_.get(key)]
    for key in moved[:_SHOWN]:
        yield f"{key} {_shown(was.get(key))} -> {_shown(is_.get(key))}"
    if len(moved) > _SHOWN:
        yield f"{len(moved) - _SHOWN} more settings"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _remembered(
    repo: "Repo", stage: "PipelineStage", coming: Mapping[str, _Coming]
) -> dict[str, tuple[Any, Any]] | None:
    """DVC's hash and figures of each output, by path, when its cache has a result for the stage's inputs; else None.

    As DVC's own `StageCache.restore` looks it up, with inputs as they will be.
    """
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    for dep in stage.deps:
        made = coming.get(dep.fs_path)
        if made is not None:
            if made.hash_info is None:
                return None
            dep.hash_info, dep.meta = made.hash_info, made.meta  # what lies there now has its hash in its figures, too
        elif not dep.exists:
            return None
        else:
            dep.hash_info = dep.get_hash()
    key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    folder = Path(repo.stage_cache._get_cache_dir(key))
    entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime) if folder.is_dir() else []
    entry = repo.stage_cache._load_cache(key, entries[-1].name) if entries else None
    if entry is None:
        return None
    cached = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    return {out.def_path: (out.hash_info, out.meta) for out in cached.outs} if cached.outs_cached() else None
