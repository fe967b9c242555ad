"""dass.lock.json names every source's uri and the bytes behind it; a run pins what is new and keeps the rest."""

import json
import logging
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from dass.errors import InputError
from dass.files import write_json
from tasks.sources.pinned import pinned, read_pins
from tasks.versioning.code import code_digest
from tasks.versioning.pins import SOURCES, keep_pins, refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, read_params, validate_settings
from tests.unwritten import state

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
    model = given.sources.model
    assert pins["sources"]["model"] == {"uri": model.uri, "sha256": model.sha256, "revision": None}
    assert pinned(ws, "evaluation", given.sources.evaluation) == {
        "uri": "./text.txt",
        "sha256": sha256(b"some words").hexdigest(),
        "revision": None,
    }
    assert read_pins(ws) == pins


def test_a_file_that_changed_is_pinned_anew(ws: Workspace) -> None:
    before = refresh_pins(ws, settings(ws))
    (ws.root / "text.txt").write_text("other words")
    after = refresh_pins(ws, settings(ws))
    assert {name for name in before["sources"] if before["sources"][name] != after["sources"][name]} == {"evaluation"}


def test_nothing_is_written_when_nothing_differs(ws: Workspace) -> None:
    refresh_pins(ws, settings(ws))
    before = state(ws.lock_file)
    refresh_pins(ws, settings(ws))
    assert state(ws.lock_file) == before


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
    pin = pinned(ws, "evaluation", settings(ws).sources.evaluation)
    assert pin["sha256"] == sha256(b"words elsewhere").hexdigest()


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
    source = settings(ws).sources.model
    with pytest.raises(InputError, match="dass pin") as refused:
        pinned(ws, "model", source)
    assert len(str(refused.value).splitlines()) == 1
    refresh_pins(ws, settings(ws))
    assert pinned(ws, "model", source)["sha256"]


def test_a_source_the_lock_file_does_not_name_is_told(ws: Workspace) -> None:
    ws.lock_file.write_text(json.dumps({"sources": {}, "code": {}}))
    with pytest.raises(InputError, match=r"does not name \./text\.txt for sources\.evaluation"):
        pinned(ws, "evaluation", settings(ws).sources.evaluation)


def test_a_pin_says_nothing_of_another_uri(ws: Workspace) -> None:
    """What once was compared with it: the digest of a new model with the one that `dass init` wrote for its role."""
    shutil.copy(ws.root / "text.txt", ws.root / "renamed.txt")
    refresh_pins(ws, settings(ws))
    with pytest.raises(InputError, match=r"does not name \./renamed\.txt for sources\.evaluation"):
        pinned(ws, "evaluation", settings(ws, "./renamed.txt").sources.evaluation)


# What a run does with pins that are there


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines said since the last time that was asked."""
    caplog.set_level(logging.INFO, logger="dass")

    def lines() -> list[str]:
        messages = list(caplog.messages)
        caplog.clear()
        return messages

    return lines


def test_a_run_pins_a_new_uri_in_one_line_and_says_nothing_of_those_it_knows(
    ws: Workspace, said: Callable[[], list[str]]
) -> None:
    refresh_pins(ws, settings(ws))
    (ws.root / "other.txt").write_text("other words")
    pins = keep_pins(ws, settings(ws, "./other.txt"))
    digest = sha256(b"other words").hexdigest()
    assert pins["sources"]["evaluation"] == {"uri": "./other.txt", "sha256": digest, "revision": None}
    assert said() == [f"dass.lock.json: sources.evaluation pinned: ./other.txt is sha256 {digest}"]
    before = state(ws.lock_file)
    assert keep_pins(ws, settings(ws, "./other.txt")) == read_pins(ws) == pins
    assert (said(), state(ws.lock_file)) == ([], before)


def test_a_run_refuses_other_bytes_under_a_uri_it_knows_until_they_are_pinned(ws: Workspace) -> None:
    refresh_pins(ws, settings(ws))
    before = ws.lock_file.read_bytes()
    (ws.root / "text.txt").write_text("other words")
    with pytest.raises(InputError, match=r"\./text\.txt is .*: it changed since.* dass pin$") as refused:
        keep_pins(ws, settings(ws))
    assert "\n" not in str(refused.value)
    assert ws.lock_file.read_bytes() == before
    keep_pins(ws, settings(ws), roles=["model"])  # a stage that does not read it
    refresh_pins(ws, settings(ws))
    keep_pins(ws, settings(ws))


def test_a_digest_that_params_yaml_changes_is_a_new_promise(ws: Workspace, said: Callable[[], list[str]]) -> None:
    refresh_pins(ws, settings(ws))
    values = read_params(ws.params)
    values["sources"]["evaluation"] = {"uri": "./text.txt"}
    values["sources"]["model"]["sha256"] = "0" * 64
    pins = keep_pins(ws, validate_settings(values, "params.yaml"))
    assert pins["sources"]["model"]["sha256"] == "0" * 64
    assert len(said()) == 1


def test_how_a_text_is_read_is_no_new_uri(ws: Workspace, said: Callable[[], list[str]]) -> None:
    before = refresh_pins(ws, settings(ws))
    values = read_params(ws.params)
    values["sources"]["evaluation"] = {"uri": "./text.txt", "column": "other", "split": "test"}
    values["sources"]["dtype"] = "float32"
    assert keep_pins(ws, validate_settings(values, "params.yaml"))["sources"] == before["sources"]
    assert said() == []


def test_a_uri_known_from_the_other_text_is_not_new(ws: Workspace) -> None:
    values = read_params(ws.params)
    values["sources"]["evaluation"] = {"uri": "./text.txt"}
    refresh_pins(ws, validate_settings(values, "params.yaml"))
    values["sources"]["calibration"] = {"uri": "./text.txt"}
    keep_pins(ws, validate_settings(values, "params.yaml"))
    values["sources"]["evaluation"] = {"uri": "./third.txt"}
    (ws.root / "third.txt").write_text("third")
    keep_pins(ws, validate_settings(values, "params.yaml"))
    values["sources"]["evaluation"] = {"uri": "./text.txt"}
    (ws.root / "text.txt").write_text("not what calibration reads")
    with pytest.raises(InputError, match="it changed since"):
        keep_pins(ws, validate_settings(values, "params.yaml"), roles=["evaluation"])


def test_a_hub_branch_stays_at_its_commit_without_asking_the_hub(ws: Workspace) -> None:
    commit = {"uri": "org/texts@main", "sha256": None, "revision": "a" * 40}
    pins = refresh_pins(ws, settings(ws))
    write_json(ws.lock_file, {**pins, "sources": {**pins["sources"], "evaluation": commit}})
    assert keep_pins(ws, settings(ws, "org/texts@main"))["sources"]["evaluation"] == commit
    (ws.root / "org").mkdir()
    (ws.root / "org" / "texts@main").write_text("a file of that name, which goes first")
    with pytest.raises(InputError, match=f"dass.lock.json says {'a' * 40}: it changed since"):
        keep_pins(ws, settings(ws, "org/texts@main"))


def test_a_lock_file_from_before_uris_were_named_is_completed(ws: Workspace, said: Callable[[], list[str]]) -> None:
    pins = refresh_pins(ws, settings(ws))
    former = {role: {key: pins["sources"][role][key] for key in ("sha256", "revision")} for role in SOURCES}
    write_json(ws.lock_file, {**pins, "sources": former})
    assert keep_pins(ws, settings(ws)) == read_pins(ws) == pins
    assert said() == []


def test_a_run_makes_a_missing_lock_file_and_refuses_a_damaged_one(
    ws: Workspace, said: Callable[[], list[str]]
) -> None:
    assert keep_pins(ws, settings(ws), code_of=["prune"]) == read_pins(ws)
    assert len(said()) == 3
    ws.lock_file.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        keep_pins(ws, settings(ws))


def test_named_texts_are_pinned_like_the_others_and_forgotten_with_their_name(
    ws: Workspace, said: Callable[[], list[str]]
) -> None:
    values = read_params(ws.params)
    values["sources"]["evaluation"] = {"uri": "./text.txt"}
    (ws.root / "code.txt").write_text("def f(): ...")
    values["evaluate"]["texts"] = {"code": {"uri": "./code.txt"}}
    refresh_pins(ws, settings(ws))
    pins = keep_pins(ws, validate_settings(values, "params.yaml"))
    digest = sha256(b"def f(): ...").hexdigest()
    assert said() == [f"dass.lock.json: evaluate.texts.code pinned: ./code.txt is sha256 {digest}"]
    assert pins["sources"]["texts"] == {"code": {"uri": "./code.txt", "sha256": digest, "revision": None}}
    source = validate_settings(values, "params.yaml").evaluate.texts["code"]
    assert pinned(ws, "texts.code", source)["sha256"] == digest
    (ws.root / "code.txt").write_text("class C: ...")
    with pytest.raises(InputError, match=r"\./code\.txt is .*: it changed since"):
        keep_pins(ws, validate_settings(values, "params.yaml"))
    assert keep_pins(ws, settings(ws))["sources"]["texts"] == {}
