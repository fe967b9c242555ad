import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dass.errors import InputError
from dass.files import read_json, write_json
from tasks.registry.registration import register
from tasks.registry.show import render, show
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.workspaces import change_settings, start_workspace

PROVENANCE: dict[str, Any] = {"git_commit": "0123abc", "git_dirty": True, "dvc": {}, "seconds": {}}


def printed(record: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(render(record))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_result_that_is_not_registered_is_shown(finished: Workspace) -> None:
    record = show(finished)
    assert record["registered"] is None
    assert record["evaluation"] == read_json(finished.metrics / "evaluation.json")
    assert record["layers"] == read_json(finished.masks / "manifest.json")["layers"]
    text = printed(record)
    for words in ("dass, unstructured, sparsity 0.5", "context length 32", "50.00%", "./model, float32", "torch 2"):
        assert words in text
    assert record["masks"]["digest"][:12] in text


def test_a_record_is_json(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    assert json.loads(json.dumps(show(finished))) == show(finished)


def test_the_registered_version_of_the_result_is_found_after_settings_were_edited(
    finished: Workspace, settings: Settings
) -> None:
    register(finished, settings, PROVENANCE)
    change_settings(finished, prune__sparsity=0.75)
    record = show(finished)
    assert record["settings"]["prune"]["sparsity"] == 0.5  # what was done, not what params.yaml says by now
    assert (record["registered"]["version"], record["registered"]["aliases"]) == ("1", ["challenger"])
    assert record["registered"]["entry"]["git"]["dirty"] is True
    assert "tiny version 1 (challenger)" in printed(record)


def test_a_version_is_shown_by_number_and_by_alias(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    here = show(finished)
    write_json(finished.metrics / "evaluation.json", {})  # the workspace has moved on
    assert show(finished, "1") == show(finished, "challenger") == here


@pytest.mark.parametrize("version", ["7", "champion", "not/an alias"])
def test_an_unknown_version_is_refused(finished: Workspace, settings: Settings, version: str) -> None:
    register(finished, settings, PROVENANCE)
    with pytest.raises(InputError, match=f"tiny has no version or alias '{version}'"):
        show(finished, version)


def test_looking_makes_no_database(finished: Workspace) -> None:
    (finished.root / "mlflow.db").unlink()
    assert show(finished)["registered"] is None
    assert not (finished.root / "mlflow.db").exists()


def test_a_path_with_brackets_is_printed_as_it_is(finished: Workspace) -> None:
    record = show(finished)
    record["base"]["uri"] = "models/[bold]x"
    assert "models/[bold]x" in printed(record)


def test_a_workspace_without_a_result_says_what_to_run(tmp_path: Path) -> None:
    workspace, _ = start_workspace(tmp_path)
    with pytest.raises(InputError, match="there is no result yet. Run: dass run"):
        show(workspace)
