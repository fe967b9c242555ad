"""dass.lock.json names the bytes behind every source, and is written only when it differs."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from dass.errors import InputError
from tasks.sources.pinned import pinned, read_pins
from tasks.versioning.code import code_digest
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, read_params, validate_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "text.txt").write_text("some words")
    return Workspace(tmp_path)


def settings(ws: Workspace, evaluation: str = "./text.txt") -> Settings:
    values = read_params(ws.params)
    values["sources"]["evaluation"] = {"uri": evaluation}
    return validate_settings(values, "params.yaml")


def test_a_digest_in_the_settings_is_taken_and_a_local_files_is_computed(ws: Workspace) -> None:
    given = settings(ws)
    pins = refresh_pins(ws, given)
    assert pins["sources"]["model"] == {"sha256": given.sources.model.sha256, "revision": None}
    assert pinned(ws, "evaluation") == {"sha256": sha256(b"some words").hexdigest(), "revision": None}
    assert read_pins(ws) == pins


def test_a_file_that_changed_is_pinned_anew(ws: Workspace) -> None:
    before = refresh_pins(ws, settings(ws))
    (ws.root / "text.txt").write_text("other words")
    after = refresh_pins(ws, settings(ws))
    assert {name for name in before["sources"] if before["sources"][name] != after["sources"][name]} == {"evaluation"}


def test_nothing_is_written_when_nothing_differs(ws: Workspace) -> None:
    refresh_pins(ws, settings(ws))
    before = ws.lock_file.stat()
    refresh_pins(ws, settings(ws))
    assert ws.lock_file.stat() == before


def test_code_is_pinned_for_the_stages_that_ask(ws: Workspace) -> None:
    assert refresh_pins(ws, settings(ws), code_of=["prune", "baseline"])["code"] == {
        "baseline": code_digest("baseline"),
        "prune": code_digest("prune"),
    }


def test_relative_paths_may_start_elsewhere(ws: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "text.txt").write_text("words elsewhere")
    refresh_pins(ws, settings(ws), root=elsewhere)
    assert pinned(ws, "evaluation")["sha256"] == sha256(b"words elsewhere").hexdigest()


def test_a_missing_source_leaves_the_lock_file_as_it_was(ws: Workspace) -> None:
    refresh_pins(ws, settings(ws))
    before = ws.lock_file.read_bytes()
    with pytest.raises(InputError, match=r"absent\.txt"):
        refresh_pins(ws, settings(ws, "./absent.txt"))
    assert ws.lock_file.read_bytes() == before


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"sources": {}})])
def test_a_lock_file_that_cannot_be_read_says_how_to_make_one(ws: Workspace, content: str | None) -> None:
    if content is not None:
        ws.lock_file.write_text(content)
    with pytest.raises(InputError, match="dass pin") as refused:
        pinned(ws, "model")
    assert len(str(refused.value).splitlines()) == 1
    refresh_pins(ws, settings(ws))
    assert pinned(ws, "model")["sha256"]


def test_a_source_the_lock_file_does_not_name_is_told(ws: Workspace) -> None:
    ws.lock_file.write_text(json.dumps({"sources": {}, "code": {}}))
    with pytest.raises(InputError, match=r"does not name sources\.model"):
        pinned(ws, "model")
