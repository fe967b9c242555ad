"""What `dass status` tells of a workspace, and that it looks only."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InfrastructureError
from flows.past_runs import past_runs
from flows.status import status
from flows.status_tables import status_tables
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import holder, take_lease
from tasks.workspace.lock import lease_file, schedule_file
from tests.frozen import frozen_holder
from tests.printing import printed
from tests.test_flows.conftest import ROOT, Commands, typed
from tests.test_flows.test_serve import files_of

DIES = """
import os, signal, sys
from pathlib import Path
from tasks.workspace.folder import Workspace
from tasks.workspace.lock import workspace_lock
with workspace_lock(Workspace(Path(sys.argv[1]))):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def told(ws: Workspace, commands: Commands) -> dict[str, Any]:
    with commands.reporting():
        answer: dict[str, Any] = json.loads(typed(ws, "status", "--json")[0])
    return answer


def test_a_workspace_with_a_champion_a_schedule_and_past_runs(finished: Workspace, commands: Commands) -> None:
    with commands.reporting():
        typed(finished, "promote")
    lease = take_lease(schedule_file(finished), "The schedule")
    try:
        lease.note(cron="0 2 * * *", timezone="UTC", jitter="0", due="2099-01-01T02:00:00+00:00")
        before = files_of(finished.root)
        found = told(finished, commands)
        beats = {str(schedule_file(finished).relative_to(finished.root))}  # the heart of the lease above
        assert {name for name, was in before.items() if files_of(finished.root)[name] != was} <= beats
        assert files_of(finished.root).keys() == before.keys()
    finally:
        lease.release()
    champion = found["model"]["champion"]
    assert (champion["version"], champion["how"], champion["proof"]["passed"]) == ("1", "promoted", True)
    assert (found["next"]["at"], found["next"]["told"]) == ("2099-01-01T02:00:00+00:00", '"0 2 * * *" (UTC)')
    assert (found["stuck"], found["unknown"], found["working"]) == ([], {}, [])
    assert [(run["flow"], run["by"], run["state"]) for run in found["runs"]] == [("promote", "hand", "Completed")]
    sizes = {each["what"]: each["bytes"] for each in found["disk"]}
    assert {"DVC cache", "MLflow", ".dass/work"} <= sizes.keys()
    assert sizes["MLflow"] > (finished.root / "mlflow.db").stat().st_size
    text = printed(status_tables(found), 100)
    for words in ("version 1 (dass unstructured", "promoted", "verified", "2099-01-01", "Last runs", "DVC cache"):
        assert words in " ".join(text.split()), words


def test_what_a_killed_process_leaves_is_stuck_until_somebody_goes_on(finished: Workspace, commands: Commands) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(finished.root)], cwd=ROOT, env=commands.environment)
    work = finished.private / "work" / ("0" * 64)
    work.mkdir()
    (work / "layer_000.safetensors").touch()
    note = {"id": "ab", "store": "mlflow.db", "experiment": "1", "model": "tiny-dass"}
    (finished.private / "registering" / "ab.json").write_text(json.dumps(note))
    with tracking(finished) as client:
        experiment = client.get_experiment_by_name("dass").experiment_id
        tags = {"sweep": "feed", "sweep.point": "parent", "ended": "interrupted; 2 points are there"}
        client.set_terminated(client.create_run(experiment, tags=tags).info.run_id, "KILLED")
    found = told(finished, commands)
    stuck = {each["what"]: each["told"] for each in found["stuck"]}
    assert stuck.keys() == {"lock of the workspace", "work", "registration", "sweep"}
    assert "a run was lost (its process was killed)" in stuck["lock of the workspace"]
    assert "feed was stopped: interrupted; 2 points are there" in stuck["sweep"]
    assert "1 layers finished" in stuck["work"]
    lease = take_lease(lease_file(finished), "here")  # somebody works: what is half done is theirs
    try:
        found = told(finished, commands)
        assert {each["what"] for each in found["stuck"]} == {"sweep"}
        assert str(os.getpid()) in found["working"][0]["told"]
    finally:
        lease.release()


def test_runs_are_read_from_the_database_of_a_server_that_is_not_up(
    finished: Workspace, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(os.environ["PREFECT_HOME"]) / "prefect.db", tmp_path / "prefect.db")
    for ending in ("-wal", "-shm"):
        beside = Path(os.environ["PREFECT_HOME"]) / f"prefect.db{ending}"
        if beside.exists():
            shutil.copy(beside, tmp_path / beside.name)
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    made_in = Workspace(finished.root.parent / "nobody")
    assert past_runs(made_in, 5).last == []
    runs = past_runs(Workspace(_ran_in(tmp_path / "prefect.db")), 5).last
    assert runs[0].flow == "compress"
    assert (runs[0].by, runs[0].state, runs[0].version, runs[0].message) == ("hand", "Completed", "1", None)
    assert 0 < runs[0].seconds < 600


def test_a_locked_database_of_runs_is_told_with_who_has_it(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(os.environ["PREFECT_HOME"]) / "prefect.db", tmp_path / "prefect.db")
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as connection:
        connection.execute("pragma journal_mode=delete")
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (
        frozen_holder(tmp_path / "prefect.db", "alone") as pid,
        pytest.raises(InfrastructureError, match=rf"prefect\.db: the database was locked for 1 s by process {pid}"),
    ):
        past_runs(finished, 5)


def _ran_in(file: Path) -> Path:
    """The workspace of some finished run in a database."""
    with sqlite3.connect(file) as connection:
        (found,) = connection.execute(
            "select json_extract(r.parameters, '$.workspace') from flow_run r join flow f on f.id = r.flow_id "
            "where f.name = 'compress' and r.state_type = 'COMPLETED' and r.tags like '%version 1\"%' limit 1"
        ).fetchone()
    return Path(found)


def test_a_part_that_cannot_be_looked_at_says_so_and_the_rest_is_told(finished: Workspace) -> None:
    with tracking(finished) as client:
        run = client.get_registered_model("tiny-dass").tags["ledger"]
        client.delete_run(run)
    found = status(finished)
    assert "was deleted" in found["unknown"]["model"]
    assert found["disk"]
    assert "model ?" in printed(status_tables(found), 100)


def test_looking_at_a_lease_takes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert holder(file) is None
    lease = take_lease(file, "it")
    seen = holder(file)
    assert seen is not None
    assert (seen.state, seen.owner.pid) == ("alive", os.getpid())
    lease.check()
    text = file.read_text()
    other = json.dumps({**json.loads(text), "boot": "another", "machine": "another"})
    lease.release()
    assert holder(file) is None
    file.write_text(text)
    seen = holder(file)
    assert seen is not None
    assert (seen.state, seen.reason) == ("lost", "its process was killed")
    file.write_text(other)
    seen = holder(file)
    assert seen is not None
    assert seen.state == "elsewhere"
