"""A real DVC repository in a temporary folder, with stages small enough to read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from dass.errors import InputError
from dass.files import complete_file, complete_folder
from tasks.versioning.inputs import InputsChangedError, Started
from tasks.versioning.stages import recorded_outs, run_if_changed, start_run, watched_inputs
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Owner
from tasks.workspace.lock import workspace_lock
from tests.frozen import frozen_holder

PARAMS = Path(__file__).parents[3] / "params.yaml"
PIPELINE = """
stages:
  first:
    cmd: python work.py first
    params: [prune, "dass.lock.json": [sources.model]]
    outs: [made/first]
  second:
    cmd: python work.py second
    deps: [made/first, helper.py]
    params: [evaluate]
    metrics:
      - metrics/second.json: {cache: false}
"""
WORK = """
import json, os, pathlib, sys
if sys.argv[1] == "first":
    os.makedirs("made/first"); pathlib.Path("made/first/a.txt").write_text("made")
else:
    os.makedirs("metrics", exist_ok=True); pathlib.Path("metrics/second.json").write_text(json.dumps({"value": 1}))
"""


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    root = tmp_path / "ws"
    root.mkdir()
    shutil.copy(PARAMS, root / "params.yaml")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "helper.py").write_text("VALUE = 1\n")
    (root / "work.py").write_text(WORK)
    Repo.init(str(root), no_scm=True)
    with (root / ".dvc" / "config").open("a") as config:
        config.write("[cache]\n    type = hardlink,copy\n")
    return Workspace.at(root)


def make_first(ws: Workspace) -> Callable[[], None]:
    def work() -> None:
        with complete_folder(ws.root / "made" / "first") as folder:
            (folder / "a.txt").write_text("made")

    return work


def make_second(ws: Workspace) -> Callable[[], None]:
    def work() -> None:
        with complete_file(ws.metrics / "second.json") as file:
            file.write_text(json.dumps({"value": 1}))

    return work


def run_both(ws: Workspace, started: Started | None = None) -> list[str]:
    started = started or start_run(ws)
    return [
        run_if_changed(ws, "first", make_first(ws), started),
        run_if_changed(ws, "second", make_second(ws), started),
    ]


def dvc(ws: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=ws.root,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


def edit(ws: Workspace, before: str, after: str) -> None:
    text = ws.params.read_text()
    assert before in text
    ws.params.write_text(text.replace(before, after))


def never() -> None:
    raise AssertionError("this stage should not have run")


def test_first_run_works_and_the_second_finds_everything_unchanged(ws: Workspace) -> None:
    assert run_both(ws) == ["ran", "ran"]
    started = start_run(ws)
    assert run_if_changed(ws, "first", never, started) == "unchanged"
    assert run_if_changed(ws, "second", never, started) == "unchanged"


def test_dvc_finds_nothing_to_do_after_a_run_and_a_run_nothing_after_dvc(ws: Workspace) -> None:
    run_both(ws)
    assert "up to date" in dvc(ws, "status").stdout
    assert "Running stage" not in dvc(ws, "repro").stdout
    ours = (ws.root / "dvc.lock").read_bytes()

    shutil.rmtree(ws.root / ".dvc" / "cache")
    shutil.rmtree(ws.root / "made")
    (ws.root / "dvc.lock").unlink()
    shutil.rmtree(ws.metrics)
    assert dvc(ws, "repro").returncode == 0
    assert (ws.root / "dvc.lock").read_bytes() == ours
    assert run_both(ws) == ["unchanged", "unchanged"]


def test_a_setting_seen_before_is_restored_without_work(ws: Workspace) -> None:
    run_both(ws)
    edit(ws, "alpha: 0.5", "alpha: 0.25")
    assert run_both(ws) == ["ran", "unchanged"]  # the same bytes came out, so second has nothing to do
    edit(ws, "alpha: 0.25", "alpha: 0.5")
    assert run_if_changed(ws, "first", never, start_run(ws)) == "restored"
    assert "up to date" in dvc(ws, "status").stdout


def test_deleted_outputs_come_back(ws: Workspace) -> None:
    run_both(ws)
    shutil.rmtree(ws.root / "made")
    (ws.metrics / "second.json").unlink()
    started = start_run(ws)
    assert run_if_changed(ws, "first", never, started) == "restored"
    assert run_if_changed(ws, "second", never, started) == "restored"
    assert (ws.metrics / "second.json").is_file()


def test_settings_edited_during_the_work_are_not_recorded(ws: Workspace) -> None:
    run_both(ws)
    edit(ws, "alpha: 0.5", "alpha: 0.25")
    lock = (ws.root / "dvc.lock").read_bytes()

    def work() -> None:
        make_first(ws)()
        edit(ws, "alpha: 0.25", "alpha: 0.75")

    with pytest.raises(InputsChangedError, match=r"params.yaml \(prune\) changed while stage first worked"):
        run_if_changed(ws, "first", work, start_run(ws))
    assert (ws.root / "dvc.lock").read_bytes() == lock
    assert run_if_changed(ws, "first", make_first(ws), start_run(ws)) == "ran"


def test_settings_edited_between_two_stages_stop_the_run(ws: Workspace) -> None:
    started = start_run(ws)
    run_if_changed(ws, "first", make_first(ws), started)
    edit(ws, "samples: 32                 # windows of", "samples: 16                 # windows of")
    with pytest.raises(InputsChangedError, match=r"params.yaml \(evaluate\)"):
        run_if_changed(ws, "second", never, started)


def test_a_setting_of_another_section_may_change_during_the_work(ws: Workspace) -> None:
    started = start_run(ws)

    def work() -> None:
        make_first(ws)()
        edit(ws, "model: smollm2-135m-dass", "model: another")

    assert run_if_changed(ws, "first", work, started) == "ran"


def test_code_edited_during_the_work_is_not_recorded(ws: Workspace) -> None:
    started = start_run(ws)
    run_if_changed(ws, "first", make_first(ws), started)

    def work() -> None:
        make_second(ws)()
        (ws.root / "helper.py").write_text("VALUE = 2\n")

    with pytest.raises(InputsChangedError, match=r"helper\.py changed"):
        run_if_changed(ws, "second", work, started)
    assert "second" not in YAML(typ="safe").load((ws.root / "dvc.lock").read_text())["stages"]


def test_an_artifact_changed_during_the_work_is_not_recorded(ws: Workspace) -> None:
    started = start_run(ws)
    run_if_changed(ws, "first", make_first(ws), started)

    def work() -> None:
        make_second(ws)()
        with complete_folder(ws.root / "made" / "first") as folder:
            (folder / "a.txt").write_text("something else")

    with pytest.raises(InputsChangedError, match="made/first changed"):
        run_if_changed(ws, "second", work, started)


def test_a_failed_stage_records_nothing_and_runs_again(ws: Workspace) -> None:
    def fails() -> None:
        raise InputError("too little text")

    started = start_run(ws)
    with pytest.raises(InputError, match="too little text"):
        run_if_changed(ws, "first", fails, started)
    assert not (ws.root / "dvc.lock").exists()
    assert run_both(ws) == ["ran", "ran"]


def test_the_current_folder_does_not_matter(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run_both(ws) == ["ran", "ran"]
    assert "up to date" in dvc(ws, "status").stdout
    monkeypatch.chdir(ws.root)
    assert run_both(ws) == ["unchanged", "unchanged"]


def test_the_cache_survives_a_stage_that_writes_its_output_again(ws: Workspace) -> None:
    run_both(ws)
    with complete_folder(ws.root / "made" / "first") as folder:
        (folder / "a.txt").write_text("changed by hand")
    assert run_if_changed(ws, "first", never, start_run(ws)) == "restored"
    assert (ws.root / "made" / "first" / "a.txt").read_text() == "made"


def test_watched_inputs_notice_an_edit(ws: Workspace) -> None:
    run_both(ws)
    with watched_inputs(ws, "second") as settings:
        assert settings.evaluate.samples == 32
    with pytest.raises(InputsChangedError, match=r"params.yaml \(evaluate\)"), watched_inputs(ws, "second"):
        edit(ws, "samples: 32                 # windows of", "samples: 16                 # windows of")


def test_a_stage_busy_in_dvc_is_waited_for_then_reported(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_run(ws)
    monkeypatch.setattr("tasks.versioning.repository._TRIES", 2)
    rwlock = {"write": {str(ws.root / "made" / "first"): {"pid": os.getppid(), "cmd": "dvc repro"}}}
    (ws.root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(rwlock))
    with pytest.raises(InputError, match=r"DVC is busy in another process.*dvc repro"):
        run_if_changed(ws, "first", never, started)


def test_a_frozen_process_that_holds_dvcs_lock_is_named(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_run(ws)
    monkeypatch.setattr("tasks.versioning.repository._TRIES", 1)
    with (
        frozen_holder(ws.root / ".dvc" / "tmp" / "lock", "file") as pid,
        pytest.raises(InputError, match=rf"DVC is busy in process {pid} .*`kill -CONT {pid}` lets it go on"),
    ):
        run_if_changed(ws, "first", never, started)


def test_dvc_repro_beside_a_working_stage_says_busy_and_removes_nothing(ws: Workspace) -> None:
    run_both(ws)
    edit(ws, "alpha: 0.5", "alpha: 0.25")
    answer = []

    def work() -> None:
        make_first(ws)()
        answer.append(dvc(ws, "repro"))

    assert run_if_changed(ws, "first", work, start_run(ws)) == "ran"
    assert answer[0].returncode != 0
    assert "busy" in answer[0].stderr
    assert (ws.root / "made" / "first" / "a.txt").is_file()


def test_other_code_than_the_pipeline_depends_on_is_refused(tmp_path: Path) -> None:
    root, copy = Path(__file__).parents[3], tmp_path / "copy"
    for name in ("dass", "tasks", ".dvc"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp"))
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(root / name, copy / name)
    config = copy / ".dvc" / "config"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    no_scm = true\n"))
    copied = Workspace.at(copy)
    assert "tasks/pruning/run.py" in start_run(copied).inputs["prune"]
    (copy / "tasks" / "pruning" / "run.py").write_text("changed = True\n")
    with pytest.raises(InputError, match="depends on the code beside it, but the code that runs is in"):
        start_run(copied)


def test_recorded_outs_are_the_digests_of_dvc_lock(ws: Workspace) -> None:
    run_both(ws)
    stages = YAML(typ="safe").load((ws.root / "dvc.lock").read_text())["stages"]
    assert recorded_outs(ws) == {
        "made/first": stages["first"]["outs"][0]["md5"],
        "metrics/second.json": stages["second"]["outs"][0]["md5"],
    }


def test_dvc_lock_is_replaced_and_never_cut_off(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run_both(ws)
    before = (ws.root / "dvc.lock").read_bytes()
    edit(ws, "alpha: 0.5", "alpha: 0.25")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dvc.utils.serialize._yaml._dump", killed)  # the moment after DVC has truncated the file
        run_both(ws)
    assert (ws.root / "dvc.lock").read_bytes() == before
    assert run_both(ws)[0] in ("ran", "restored")


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_dvc_lock_is_made_anew_and_said(ws: Workspace, content: str, caplog: pytest.LogCaptureFixture) -> None:
    run_both(ws)
    before = (ws.root / "dvc.lock").read_bytes()
    (ws.root / "dvc.lock").write_text(content)
    started = start_run(ws)
    assert [run_if_changed(ws, name, never, started) for name in ("first", "second")] == ["restored", "restored"]
    assert (ws.root / "dvc.lock").read_bytes() == before
    assert "dvc.lock was empty" in caplog.text


@pytest.mark.parametrize("content", ["", '{"read": {"a": [{"pi'])
def test_a_cut_off_note_of_readers_and_writers_is_no_hindrance(
    ws: Workspace, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_both(ws)
    (ws.root / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert run_both(ws) == ["unchanged", "unchanged"]
    edit(ws, "alpha: 0.5", "alpha: 0.75")
    assert run_both(ws)[0] == "ran"
    assert "rwlock was cut off" in caplog.text


def test_what_dvc_noted_of_a_run_whose_place_was_taken_is_no_hindrance(ws: Workspace) -> None:
    """It may only be asleep: DVC would wait for it as long as there is such a process."""
    asleep = replace(Owner.here(), pid=os.getppid(), command="dass run", at=0.0)
    noted = {"pid": asleep.pid, "cmd": asleep.command}
    path = str(ws.root / "made" / "first")
    (ws.root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {path: noted}, "read": {path: [noted]}}))
    ws.private.mkdir()
    (ws.private / "lock").write_text(json.dumps(asdict(asleep)))
    with workspace_lock(ws):
        assert run_both(ws) == ["ran", "ran"]


def test_a_user_s_own_file_among_the_artifacts_stops_the_stage_that_would_remove_it(ws: Workspace) -> None:
    (ws.root / "dvc.yaml").write_text(PIPELINE.replace("made/first", "artifacts/pruned"))

    def work() -> None:
        with complete_folder(ws.pruned) as folder:
            (folder / "a.txt").write_text("made")

    assert run_if_changed(ws, "first", work, start_run(ws)) == "ran"
    (ws.pruned / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"artifacts/pruned/note\.txt was not made by a stage.* Move it out"):
        run_if_changed(ws, "first", work, start_run(ws))
    with pytest.raises(InputError, match=r"note\.txt was not made by a stage"), watched_inputs(ws, "first"):
        pass
    assert sorted(os.listdir(ws.pruned)) == ["a.txt", "note.txt"]
    (ws.pruned / "note.txt").rename(ws.root / "note.txt")
    assert run_if_changed(ws, "first", work, start_run(ws)) == "unchanged"
