"""How a run and DVC meet: what is unchanged is skipped, what was seen before is restored, the rest runs.

Two doors lead to the same stage functions, and both leave the same dvc.lock:

- `dass run` works in its own process and calls `run_if_changed` for each stage;
- `dvc repro` starts `python -P -m flows STAGE`, which works inside `watched_inputs`.

At both, a result is recorded only with the inputs it was made from: these are compared at the end with what they were
at the start, and when they differ nothing is recorded.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.versioning.checksums import digests_kept, hand_over
from tasks.versioning.follow_git import follow_git
from tasks.versioning.inputs import InputsChangedError, Started, changed_while, check_inputs, compare, value_of
from tasks.versioning.pins import ROLES, keep_pins, refresh_pins
from tasks.versioning.repository import dvc_repo, held, name_of, patiently, stage_of, stages_of
from tasks.versioning.stage_code import check_code, check_pinned_code, reads, stages_with_pinned_code
from tasks.versioning.state import dump_stage, mend_state
from tasks.workspace.artifacts import refuse_strangers
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import LeaseLostError
from tasks.workspace.lock import check_held, lease_of
from tasks.workspace.settings import Settings, load_settings

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

Outcome = Literal["unchanged", "restored", "ran"]


def pin_inputs(ws: Workspace, root: Path | None = None) -> dict[str, Any]:
    """Write dass.lock.json for sources and code as they are, whatever it said before. Call inside `workspace_lock`.

    Args:
        root: the folder that relative paths of sources start from; None is the workspace.

    Raises:
        InputError: the settings cannot be used, or a source is missing.
    """
    if root is None:
        follow_git(ws)
    with dvc_repo(ws) as repo:
        patiently(repo, lambda: _mend(repo))
        return refresh_pins(ws, load_settings(ws.params), stages_with_pinned_code(stages_of(repo)), root)


def start_run(ws: Workspace) -> Started:
    """Read the settings, pin sources that are new, note every input that no stage makes. Call inside `workspace_lock`.

    Raises:
        InputError: the settings cannot be used, a source is missing or holds other bytes than were pinned for its uri,
            dvc.yaml points at other code than runs here, or git does not say whether it tracks the workspace.
        InputsChangedError: params.yaml was edited meanwhile.
    """
    settings, text = _read_settings(ws)
    follow_git(ws)
    with dvc_repo(ws) as repo:
        patiently(repo, lambda: _mend(repo))
        stages = stages_of(repo)
        keep_pins(ws, settings, code_of=stages_with_pinned_code(stages))
        made = {out.fs_path for stage in stages for out in stage.outs}
        for stage in stages:
            check_code(ws, stage)
        inputs = {
            stage.name: {name_of(dep): value_of(dep) for dep in stage.deps if dep.fs_path not in made}
            for stage in stages
        }
    if ws.params.read_bytes() != text:
        raise InputsChangedError(f"{ws.params.name} was edited while the run started. Run again.")
    return Started(settings, inputs)


def run_if_changed(ws: Workspace, name: str, work: Callable[[], object], started: Started) -> Outcome:
    """Do a stage's work unless DVC has its result, and record the result with the inputs it was made from.

    Call inside `workspace_lock`. When `work` raises, its exception passes: the stage's outputs are then removed and
    dvc.lock is as it was, so the next run does this stage again.

    Raises:
        InputsChangedError: an input changed since the run started. Nothing was recorded.
        VersioningError: DVC could not do its part.
    """
    with dvc_repo(ws) as repo:
        stage, outcome = patiently(repo, lambda: _decide(repo, name, started))
        if outcome is not None:
            return outcome
        with ExitStack() as until_recorded:
            patiently(repo, lambda: until_recorded.enter_context(_reserved(repo, stage)))
            work()
            patiently(repo, lambda: _record(repo, stage))
    return "ran"


def unchanged_stages(ws: Workspace, names: Iterable[str], started: Started) -> list[str]:
    """Those stages, in order and up to the first of which it is not so, whose result is the one that dvc.lock records
    for their inputs. Nothing is restored or written.

    Call inside `workspace_lock`.

    Raises:
        InputsChangedError: an input changed since the run started.
        VersioningError: DVC could not do its part.
    """
    with dvc_repo(ws) as repo:
        return patiently(repo, lambda: _unchanged(repo, names, started))


@contextmanager
def watched_inputs(ws: Workspace, name: str) -> Iterator[Settings]:
    """Around a stage's work when `dvc repro` started it: DVC records the inputs as they are at the end.

    Yields:
        The settings, read once.

    Raises:
        InputsChangedError: an input changed while the stage worked. The command must fail, so that DVC
            records nothing.
        InputError: the settings cannot be used, dass.lock.json was written by other code, somebody's own file lies
            where the stage writes, or a source that the stage reads holds other bytes than were pinned for its uri. One
            with a new uri is pinned here.
    """
    with dvc_repo(ws) as repo:
        settings, text = _read_settings(ws)
        stage = stage_of(repo, name)
        check_code(ws, stage)
        check_pinned_code(stage)
        _refuse_strangers(ws, stage)
        keep_pins(ws, settings, [role for role in ROLES if reads(stage, f"sources.{role}")])
        stage.save_deps()
        if ws.params.read_bytes() != text:
            raise changed_while(name, ws.params.name)
        yield settings
        check_held(ws)
        repo._reset()
        check_inputs(stage)
        hand_over(repo, stage)  # dvc repro itself records the outputs, in another process


def _unchanged(repo: "Repo", names: Iterable[str], started: Started) -> list[str]:
    def is_unchanged(stage: "PipelineStage") -> bool:
        compare(started, stage, value_of)
        return not stage.changed()

    with held(repo):
        stages = {stage.name: stage for stage in stages_of(repo)}
        return list(takewhile(lambda name: is_unchanged(stages[name]), names))


def _decide(repo: "Repo", name: str, started: Started) -> tuple["PipelineStage", Outcome | None]:
    from dvc.stage.cache import RunCacheNotFoundError

    with held(repo):
        check_held(Workspace(Path(repo.root_dir)))
        stage = stage_of(repo, name)
        compare(started, stage, value_of)
        if not stage.changed():
            return stage, "unchanged"
        _refuse_strangers(Workspace(Path(repo.root_dir)), stage)
        stage.remove_outs(ignore_remove=False)
        try:
            repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            stage.save_deps()  # before the work: these are the inputs that will be recorded
            compare(started, stage, lambda dep: dep.hash_info.value)
            return stage, None
        stage.save()
        compare(started, stage, lambda dep: dep.hash_info.value)
        stage.commit()
        dump_stage(repo, stage)
        return stage, "restored"


def _mend(repo: "Repo") -> None:
    lease = lease_of(Workspace(Path(repo.root_dir)))
    lost = None if lease is None else lease.lost
    with held(repo):
        mend_state(repo, None if lost is None else (lost.pid, lost.command))


def _refuse_strangers(ws: Workspace, stage: "PipelineStage") -> None:
    """Raise InputError where a folder that the stage replaces holds somebody's own file."""
    for out in stage.outs:
        if Path(out.fs_path).parent == ws.base.parent:
            tree = out.get_obj()
            recorded = ["/".join(key) for key, _, _ in tree] if tree is not None else []
            refuse_strangers(ws, Path(out.fs_path), recorded)


@contextmanager
def _reserved(repo: "Repo", stage: "PipelineStage") -> Iterator[None]:
    """Tell DVC that this process reads the inputs and writes the outputs: a `dvc repro` beside us says "busy"."""
    from dvc.rwlock import rwlock

    deps, outs = [dep.fs_path for dep in stage.deps], [out.fs_path for out in stage.outs]
    hardlink = repo.config["core"].get("hardlink_lock", False)
    lost: LeaseLostError | None = None
    try:
        with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), deps, outs, hardlink):
            try:
                yield
            except LeaseLostError as error:
                lost = error
                raise
    except AssertionError:
        if lost is None:
            raise
        raise lost from None  # DVC misses its note of us, which whoever took our place has removed


def _record(repo: "Repo", stage: "PipelineStage") -> None:
    with held(repo):
        check_held(Workspace(Path(repo.root_dir)))
        check_inputs(stage)
        hand_over(repo, stage)
        stage.save_outs()
        stage.md5 = stage.compute_md5()
        repo.stage_cache.save(stage)
        with digests_kept(repo, stage):
            stage.commit()
        dump_stage(repo, stage)


def recorded_outs(ws: Workspace) -> dict[str, str]:
    """Path -> md5 of everything dvc.lock says the stages made.

    Raises:
        VersioningError: DVC could not read it.
    """
    with dvc_repo(ws) as repo:
        return {name_of(out): out.hash_info.value for stage in stages_of(repo) for out in stage.outs if out.hash_info}


def _read_settings(ws: Workspace) -> tuple[Settings, bytes]:
    """The settings, and the very bytes they were read from."""
    while True:
        before = ws.params.read_bytes() if ws.params.exists() else b""
        settings = load_settings(ws.params)
        if ws.params.read_bytes() == before:
            return settings, before
