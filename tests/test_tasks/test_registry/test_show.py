import json
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from dass.files import read_json, write_json
from tasks.registry.registration import register
from tasks.registry.show import render, show
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.printing import printed
from tests.workspaces import change_settings, start_workspace

PROVENANCE: dict[str, Any] = {"git_commit": "0123abc", "git_dirty": True, "dvc": {}, "seconds": {}}


def test_a_result_that_is_not_registered_is_shown(finished: Workspace) -> None:
    record = show(finished)
    assert record["registered"] is None
    assert record["evaluation"] == read_json(finished.metrics / "evaluation.json")
    assert record["layers"] == read_json(finished.masks / "manifest.json")["layers"]
    text = printed(render(record), 120)
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
    assert "tiny version 1 (challenger)" in printed(render(record), 120)


def test_a_version_is_shown_by_number_and_by_alias(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    here = show(finished)
    write_json(finished.metrics / "evaluation.json", {})  # the workspace has moved on
    shown = show(finished, "1")
    assert show(finished, "challenger") == shown
    assert "bom.cdx.json, CycloneDX 1.6: 1 base, 2 data sets," in printed(render(shown), 160)
    assert (here.pop("bom"), shown.pop("bom")["bomFormat"]) == (None, "CycloneDX")
    assert shown == here


@pytest.mark.parametrize("version", ["7", "champion", "not/an alias"])
def test_an_unknown_version_is_refused(finished: Workspace, settings: Settings, version: str) -> None:
    register(finished, settings, PROVENANCE)
    with pytest.raises(InputError, match=f"tiny has no version or alias '{version}'"):
        show(finished, version)


def test_looking_makes_no_database(finished: Workspace) -> None:
    (finished.root / "mlflow.db").unlink()
    assert show(finished)["registered"] is None
    assert not (finished.root / "mlflow.db").exists()


@pytest.mark.parametrize("width", [60, 80])
def test_a_result_is_readable_on_a_narrow_terminal(finished: Workspace, width: int) -> None:
    record = show(finished)
    lines = printed(render(record), width).splitlines()
    share = "50.0%" if width == 60 else "50.00%"
    told = f"In every layer: gate {share}, up {share}, down {share}, 2:4 none"
    assert told in " ".join(" ".join(lines).split())
    layers = [line.split() for line in lines]
    assert ["layer", "error", "norm"] in layers
    rows = {line[0]: line[1:] for line in layers if len(line) == 3 and line[0].isdigit()}
    for layer in record["layers"]:
        error, norm = rows[str(layer["layer"])]
        assert error == f"{layer['relative_error']:.4f}"
        assert float(norm) == pytest.approx(layer["norm"]["median"], rel=0.01)
    assert len({len(norm.partition(".")[2]) for _error, norm in rows.values()}) == 1  # as many places in each row
    assert "fitted" not in " ".join(lines)  # what is not shown is not explained
    for layer in record["layers"]:  # with all there may be: a score a layer, a re-fit's errors, other shares
        layer |= {"fitted_error": 0.1 * layer["layer"], "held_back_error": 0.2 * layer["layer"]}
        layer["sparsity"] = dict.fromkeys(layer["sparsity"], 0.4 + layer["layer"] / 10)
        layer["runs_2_4"] = {"gate_proj": layer["layer"] > 0, "up_proj": layer["layer"] > 0, "down_proj": False}
    wide = [line.split() for line in printed(render(record), width).splitlines()]
    assert ["layer", "gate", "up", "down", "error", "fitted", "held", "norm", "2:4"] in wide
    last = next(line for line in wide if line[:1] == ["1"])
    assert (last[1:4], last[5:7], last[-2:]) == ([share] * 3, ["0.1000", "0.2000"], ["gate,", "up"])


def test_a_path_with_brackets_is_printed_as_it_is(finished: Workspace) -> None:
    record = show(finished)
    record["base"]["uri"] = "models/[bold]x"
    assert "models/[bold]x" in printed(render(record), 120)


def test_a_workspace_without_a_result_says_what_to_run(tmp_path: Path) -> None:
    workspace, _ = start_workspace(tmp_path)
    with pytest.raises(InputError, match="there is no result yet. Run: dass run"):
        show(workspace)
