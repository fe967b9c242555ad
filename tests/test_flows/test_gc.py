"""What `dass gc` frees and what it leaves, in a workspace in which `dass run` has run: real DVC, git and MLflow."""

import json
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError, UnavailableError
from dass.files import canonical_json, read_json
from flows.run import run_of
from flows.stages import wanted_stages
from tasks.disk.freeing import Asked, Plan, free, look
from tasks.promotion.replay_data import data_of
from tasks.promotion.verification import verify_all, verify_version
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.ledger import BrokenLedger
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import recovery_of
from tasks.versioning import git
from tasks.versioning.dvc_data import pull
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import lease_file
from tasks.workspace.sizes import size_of
from tests.servers import mlflow_server
from tests.test_flows.conftest import ROOT, Commands, typed

MODEL = "tiny-dass"


def objects(ws: Workspace) -> set[str]:
    return {path.parent.name + path.name for path in (ws.root / ".dvc" / "cache" / "files" / "md5").glob("*/*")}


def what(plan: Plan) -> set[str]:
    return {row.what for row in plan.rows}


def version_folder(ws: Workspace) -> Path:
    (found,) = ws.root.glob("mlartifacts/models/*/artifacts")
    return found


def replay_data(ws: Workspace) -> dict[str, str]:
    folder = version_folder(ws)
    return data_of(read_json(folder / "dass" / "version.json"), recovery_of(folder))


def test_the_state_of_the_workspace_stays_and_finished_work_goes(finished: Workspace) -> None:
    before = objects(finished)
    plan = look(finished, Asked())
    assert what(plan) == {"work of finished runs"}
    assert plan.needs.versions == 1
    freed = free(finished, Asked(), plan.names)
    assert (freed.bytes, freed.failed, freed.kept) == (plan.bytes, [], 0)
    assert freed.bytes > 0
    assert not any((finished.private / "work").iterdir())
    assert objects(finished) == before
    assert look(finished, Asked()).candidates == []


def test_of_a_version_that_nothing_else_names_only_its_replay_s_data_stays(finished: Workspace, tmp_path: Path) -> None:
    (finished.root / "dvc.lock").unlink()
    shutil.rmtree(finished.base.parent)
    plan = look(finished, Asked())
    assert {"artifacts/pruned of earlier results", "artifacts/measures of earlier results"} <= what(plan)
    assert not {"artifacts/base of earlier results", "artifacts/calibration of earlier results"} & what(plan)
    cache = finished.root / ".dvc" / "cache" / "files"
    held = size_of(cache).bytes
    freed = free(finished, Asked(), plan.names)
    left = size_of(cache).bytes
    rows = [row.bytes for row in plan.rows if row.store == "DVC cache"]
    assert sum(rows) == held - left > 0
    assert freed.bytes == plan.bytes
    (tmp_path / "replay").mkdir()
    pull(finished, replay_data(finished), tmp_path / "replay")
    assert (tmp_path / "replay" / "artifacts" / "base" / "config.json").is_file()


def test_what_a_commit_or_an_index_names_stays(finished: Workspace) -> None:
    def run(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(finished.root), *identity, *arguments], check=True, capture_output=True)

    run("init", "-q")
    run("add", "dvc.lock")
    (finished.root / "dvc.lock").unlink()
    assert not {row.store for row in look(finished, Asked()).rows} & {"DVC cache"}
    run("commit", "-qm", "state")
    run("branch", "kept")
    run("rm", "-q", "--cached", "dvc.lock")
    run("commit", "-qm", "gone")
    assert not {row.store for row in look(finished, Asked()).rows} & {"DVC cache"}


def test_what_is_unfinished_stays_with_what_it_begins_with(finished: Workspace) -> None:
    work = finished.private / "work" / ("0" * 64)
    work.mkdir(parents=True)
    (work / "layer_000.safetensors").write_bytes(b"x" * 100)
    (finished.root / "dvc.lock").unlink()
    with tracking(finished) as client:
        client.delete_model_version(MODEL, "1")
    plan = look(finished, Asked(deleted_versions=True))
    assert not any(str(work) == each.name for each in plan.candidates)
    assert [each.what for each in plan.left if "pruning 0000" in each.what]
    gone = what(plan)
    assert "artifacts/pruned of earlier results" in gone
    assert not {f"artifacts/{name} of earlier results" for name in ("base", "calibration", "evaluation")} & gone
    shutil.rmtree(work)
    shutil.rmtree(finished.private / "work")  # the deleted version's own, which is not registered any more
    assert "artifacts/base of earlier results" in what(look(finished, Asked(deleted_versions=True)))


def test_only_mlflow_s_files_of_ours_that_no_version_needs_go(finished: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "precious"
    outside.mkdir(parents=True)
    (outside / "file").write_text("mine")
    with tracking(finished) as client:
        experiment = client.get_run(client.get_model_version(MODEL, "1").run_id).info.experiment_id

        def run(status: str, tags: dict[str, str]) -> Any:
            made = client.create_run(experiment, tags=tags)
            client.log_text(made.info.run_id, "x" * 1000, "note.txt")
            client.set_terminated(made.info.run_id, status)
            return made.info

        failed, theirs = run("FAILED", {ATTEMPT: "a"}), run("FAILED", {})
        point = {"sweep": "s", "sweep.point": "0"}
        parent = run("FINISHED", {"sweep": "s", "sweep.point": "parent"})
        done = run("FINISHED", {**point, "mlflow.parentRunId": parent.run_id})
        client.log_text(done.run_id, "y" * 1000, "masks/masks.safetensors")
        stopped = run("KILLED", {"sweep": "t", "sweep.point": "parent", "ended": "interrupted"})
        open_ = run("FINISHED", {**point, "sweep": "t", "mlflow.parentRunId": stopped.run_id})
        client.log_text(open_.run_id, "z" * 1000, "masks/masks.safetensors")
        forged = run("FAILED", {ATTEMPT: "b"})
    with closing(sqlite3.connect(finished.root / "mlflow.db")) as connection:
        connection.execute("update runs set artifact_uri = ? where run_uuid = ?", (outside.as_uri(), forged.run_id))
        connection.commit()
    kept = look(finished, Asked(sweeps=False))
    assert [each.name for each in kept.candidates if each.store == "MLflow"] == [_folder(failed)]
    plan = look(finished, Asked())
    assert {each.name for each in plan.candidates if each.store == "MLflow"} == {
        _folder(failed),
        f"{_folder(done)}/masks",
    }
    assert {"files that MLflow places elsewhere", "sweep t"} <= {each.what for each in plan.left}
    free(finished, Asked(), plan.names)
    assert (outside / "file").read_text() == "mine"
    assert not Path(_folder(failed)).exists()
    assert Path(_folder(theirs), "note.txt").exists()
    assert Path(_folder(done), "note.txt").exists()
    assert Path(_folder(open_), "masks", "masks.safetensors").exists()
    assert version_folder(finished).is_dir()


def _folder(info: Any) -> str:
    return str(info.artifact_uri).removeprefix("file://")


def test_files_of_a_deleted_version_stay_until_they_are_asked_for(finished: Workspace) -> None:
    with tracking(finished) as client:
        client.delete_model_version(MODEL, "1")
    folder = version_folder(finished)
    plan = look(finished, Asked())
    assert "MLflow" not in {row.store for row in plan.rows}
    assert "--deleted-versions" in next(each.why for each in plan.left if each.what == "files of deleted versions")
    asked = Asked(deleted_versions=True)
    assert "deleted versions" in what(look(finished, asked))
    free(finished, asked)
    assert not folder.exists()


def test_what_cannot_be_judged_is_refused_and_nothing_goes(finished: Workspace) -> None:
    junk = finished.root / ".dvc" / "cache" / "files" / "md5" / "aa" / ("b" * 30)
    junk.parent.mkdir(exist_ok=True)
    junk.write_text("junk")
    said = version_folder(finished) / "dass" / "version.json"
    content = said.read_bytes()
    said.unlink()
    said.write_bytes(content.replace(b"artifacts/base", b"artifacts/none"))
    with pytest.raises(
        Exception, match=r"What tiny-dass version 1 needs cannot be judged: dass/version.json .* differs"
    ):
        free(finished, Asked())
    said.write_bytes(content)
    away = finished.root / "away"
    version_folder(finished).rename(away)
    with pytest.raises(UnavailableError, match=r"cannot be judged: .* its files are gone"):
        free(finished, Asked())
    (folder,) = finished.root.glob("mlartifacts/models/*")
    away.rename(folder / "artifacts")
    with closing(sqlite3.connect(finished.root / "mlflow.db")) as connection:
        connection.execute("delete from params where key = 'entry.000001'")
        connection.commit()
    with pytest.raises(BrokenLedger):
        free(finished, Asked())
    assert junk.exists()


def test_versions_in_a_store_that_is_not_asked_are_not_forgotten(finished: Workspace) -> None:
    subprocess.run(["git", "init", "-q", str(finished.root)], check=True)
    elsewhere = canonical_json({"store": "http://mlflow.example:5000"})
    git.commit_file(finished.root, "refs/dass/ledger/tiny-dass", "0.json", elsewhere, "seen")
    with pytest.raises(InputError, match="remembers versions at http://mlflow.example:5000, which is not asked"):
        look(finished, Asked())
    assert look(finished, Asked(given_up=("http://mlflow.example:5000",))).needs.versions == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.disk import freeing
from tasks.workspace.folder import Workspace
left, remove = 3, freeing.remove_objects

def dying(paths):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    remove(paths)

freeing.remove_objects = dying
freeing.free(Workspace(Path(sys.argv[1])), freeing.Asked())
"""


def test_killed_in_the_middle_nothing_needed_is_lost_and_the_next_one_goes_on(
    finished: Workspace, commands: Commands, tmp_path: Path
) -> None:
    (finished.root / "dvc.lock").unlink()
    shutil.rmtree(finished.base.parent)
    before = look(finished, Asked()).names
    killed = subprocess.run([sys.executable, "-c", KILLED, str(finished.root)], cwd=ROOT, env=commands.environment)
    assert killed.returncode == -signal.SIGKILL
    left = look(finished, Asked())
    assert left.names < before
    free(finished, Asked(), left.names)
    assert look(finished, Asked()).candidates == []
    (tmp_path / "replay").mkdir()
    pull(finished, replay_data(finished), tmp_path / "replay")


def test_the_command_shows_first_and_asks(finished: Workspace, commands: Commands) -> None:
    shown, _ = typed(finished, "gc", "--dry-run")
    assert "work of finished runs" in shown
    untold = commands(finished, "dass", "gc")  # in a process that has no terminal
    assert "Nothing was removed: there is no terminal to ask at. To free it: dass gc --yes" in untold.stderr
    assert any((finished.private / "work").iterdir())
    holder = [sys.executable, "-c", HOLDS, str(finished.root)]
    with subprocess.Popen(holder, cwd=ROOT, env=commands.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "is held by another run" in typed(finished, "gc", "--yes", status=2)[1]
        process.kill()
    answer = json.loads(typed(finished, "gc", "--yes", "--json")[0])
    assert answer["freed"]["bytes"] == answer["bytes"] > 0
    assert not any((finished.private / "work").iterdir())
    assert lease_file(finished).exists()


HOLDS = """
import sys, time
from pathlib import Path
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
with workspace_lock(Workspace(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_of_sweeps_what_may_go_on_stays_and_masks_go_behind_the_records_that_name_them(finished: Workspace) -> None:
    sweeps = finished.sweeps
    for name in ("points/k1.json", "masks/f1/manifest.json", "masks/f1/masks.safetensors", "feed/sweep.json"):
        (sweeps / name).parent.mkdir(parents=True, exist_ok=True)
        (sweeps / name).write_text(json.dumps({"fingerprint": "f1"}))
    for name in (
        "work/k1/left.txt",
        "work/f2/work/f2/layer_000.safetensors",
    ):  # a finished point's, and one that is not
        (sweeps / name).parent.mkdir(parents=True, exist_ok=True)
        (sweeps / name).write_text("x")
    plan = look(finished, Asked())
    assert not [each.name for each in plan.candidates if str(sweeps) in each.name]
    assert "a sweep's point, f2" in {each.what for each in plan.left}
    shutil.rmtree(sweeps / "work" / "f2")
    kept = look(finished, Asked(sweeps=False))
    assert [each.name for each in kept.candidates if str(sweeps) in each.name] == [str(sweeps / "work" / "k1")]
    free(finished, Asked())
    assert not any((sweeps / each).exists() for each in ("work/k1", "masks/f1", "points/k1.json"))
    assert (sweeps / "feed" / "sweep.json").exists()


@pytest.mark.slow
def test_on_a_server_the_same_goes_and_versions_of_the_workspace_s_own_store_are_not_forgotten(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "at").mkdir()
    with mlflow_server(f"sqlite:///{tmp_path / 'at' / 'server.db'}", tmp_path / "at") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with run_of(str(finished.root), ["register.model=elsewhere"]) as run:
            for stage in wanted_stages(None):
                run.stage(stage)
            run.register()
        with tracking(finished) as client:
            experiment = client.get_run(client.get_model_version("elsewhere", "1").run_id).info.experiment_id
            failed = client.create_run(experiment, tags={ATTEMPT: "a"}).info
            client.log_text(failed.run_id, "x" * 1000, "note.txt")
            client.set_terminated(failed.run_id, "FAILED")
        plan = look(finished, Asked())
        assert plan.needs.versions == 2
        (found,) = [each for each in plan.candidates if each.store == "MLflow"]
        assert (found.bytes, failed.run_id in found.name) == (1000, True)
        freed = free(finished, Asked(), plan.names)
        assert (freed.failed, freed.bytes) == ([], plan.bytes)
        with tracking(finished) as client:
            assert client.list_artifacts(failed.run_id) == []
        assert look(finished, Asked()).candidates == []
        assert not verify_version(finished, "elsewhere", "1").failed


@pytest.mark.slow
def test_after_twenty_runs_what_nothing_needs_is_freed_and_every_version_left_is_replayed(
    new_workspace: Callable[[], Workspace],
) -> None:
    """Twenty results with other settings each; two of their versions are deleted in MLflow, and a run was killed."""
    ws = new_workspace()
    for n in range(20):
        changes = [f"prune.alpha={n / 20}", f"calibration.seed={n % 4}", "calibration.samples=8"]
        with run_of(str(ws.root), changes) as run:
            for stage in wanted_stages(None):
                run.stage(stage)
            assert run.register().version == str(n + 1)
    with tracking(ws) as client:
        for number in ("3", "7"):
            client.delete_model_version(MODEL, number)
    asked = Asked(deleted_versions=True)
    plan, before = look(ws, asked), size_of(ws.root)
    assert {"artifacts/pruned of earlier results", "deleted versions", "work of finished runs"} <= what(plan)
    freed, after = free(ws, asked, plan.names), size_of(ws.root)
    told = f"{before.bytes:,} bytes before, {after.bytes:,} behind, {freed.bytes:,} freed"
    logging.getLogger(__name__).warning(told)  # shown with -o log_cli=true: docs/disk.md has it
    assert freed.bytes == plan.bytes
    assert before.bytes - after.bytes == pytest.approx(freed.bytes, abs=100_000)  # MLflow's own rows and notes
    assert freed.bytes > 0.2 * before.bytes
    assert look(ws, asked).candidates == []
    proofs = list(verify_all(ws, MODEL, replay=True))
    assert len(proofs) == 18
    assert [proof.what for proof in proofs if not all(step.passed for step in proof.steps)] == []
    with run_of(str(ws.root), ["prune.alpha=0", "calibration.seed=0", "calibration.samples=8"]) as run:
        for stage in wanted_stages(None):  # what was freed of the first result is made again, and is the same
            run.stage(stage)
        assert {run.outcomes[name] for name in ("sources", "prune", "materialize")} <= {"restored", "ran", "unchanged"}
        assert run.register().created is False
