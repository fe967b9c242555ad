"""The answers of a version: from its signed files, proved to give its figures, listed."""

import json
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from dass.files import read_json, write_json
from dass.masks.proof import ProofError
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.promotion.configuration import check_configuration
from tasks.promotion.task_proof import check_tasks
from tasks.registry.asked_answers import answers, answers_table, as_json
from tasks.registry.checked import checked_version
from tasks.registry.registration import register
from tasks.registry.show import show
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import ANSWERS, CARD, TASKS
from tasks.workspace.folder import Workspace
from tests.printing import printed
from tests.task_documents import write_task_files
from tests.workspaces import change_settings

PROVENANCE: dict[str, Any] = {"git_commit": "0123abc", "git_dirty": False, "dvc": {}, "seconds": {}}


@pytest.fixture
def asked(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a registered result that was asked a task."""
    monkeypatch.setenv("DASS_CACHE", str(finished.root / "cache"))
    files = write_task_files(finished.root)
    settings = change_settings(finished, evaluate__tasks=["piqa"], evaluate__task_files=files)
    evaluate_tasks(finished, settings)
    register(finished, settings, PROVENANCE)
    return finished


def test_a_version_has_its_answers_and_they_prove_its_figures(asked: Workspace) -> None:
    here = answers(asked, "tiny", None, None, False)
    (asked.answers / "answers.parquet").unlink()  # the workspace has moved on
    rows = answers(asked, "tiny", "challenger", "piqa", False)
    assert rows == here
    assert len(rows) == 12
    flipped = answers(asked, "tiny", "1", None, True)
    assert flipped == [row for row in rows if row.right[0] is not row.right[1]]
    assert json.loads(json.dumps([as_json(row) for row in rows]))[0]["choices"] == rows[0].choices
    assert printed(answers_table(rows), 80).count("piqa") == 12
    with pytest.raises(InputError, match="tiny version 1 has no answers to 'arc_easy': expected one of piqa"):
        answers(asked, "tiny", "1", "arc_easy", False)

    tasks = read_json(asked.metrics / "tasks.json")
    assert show(asked, "1")["tasks"] == tasks
    with tracking(asked) as client:
        version = checked_version(client, "tiny", "1", asked)
        assert version.entry.details["tasks_mean"] == tasks["mean"]["pruned"]
        metrics = client.get_run(version.made.run_id).data.metrics
        assert metrics["tasks.piqa.pruned.acc"] == tasks["tasks"]["piqa"]["pruned"]["acc"]
        with version.folder() as folder:
            assert "is what was written for this manifest" in check_configuration(folder, lambda: asked.base)
            assert "| piqa, acc | 12 |" in (folder / CARD).read_text()
            _forgeries_are_named(folder, asked.root / "forged.json", read_json(folder / "dass" / "settings.json"))


def _forgeries_are_named(folder: Path, forged: Path, settings: dict[str, Any]) -> None:
    for change, told in (
        (lambda entry: entry["pruned"].update(acc=0.99), r"piqa.pruned.acc is 0.99, and follows as"),
        (lambda entry: entry["difference"]["acc"].update(lost=0, gained=11), r"piqa.difference.acc.(lost|gained) is"),
        (lambda entry: entry.update(documents=13), "piqa.documents is 13, and follows as 12"),
    ):
        record = read_json(folder / TASKS)
        change(record["tasks"]["piqa"])
        write_json(forged, record)
        with pytest.raises(ProofError, match=told):
            check_tasks(forged, folder / ANSWERS, settings["evaluate"])


def test_a_result_that_was_asked_nothing_has_no_answers(finished: Workspace) -> None:
    with pytest.raises(InputError, match="The workspace's result has no answers: no task was asked"):
        answers(finished, "tiny", None, None, False)
