"""From a version to a champion and back, on SQLite and on a server with Postgres."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from dass.files import read_json
from dass.masks.proof import ProofError
from tasks.promotion.compare import compare
from tasks.promotion.decision import decide, go_back, number_of, prove
from tasks.promotion.diff import diff
from tasks.promotion.history import history
from tasks.registry.key_file import key_name
from tasks.registry.ledger import Ledger
from tasks.registry.registration import register
from tasks.registry.tracking import tracking
from tasks.registry.versions import find_version, folder_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote, load_settings
from tests.stores import Store
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings, copy_workspace

RULES = Promote(max_ratio=100.0, margin=10.0)


@pytest.fixture
def registered(
    results: list[Workspace], store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[Workspace, str]:
    """A workspace whose two results are versions 1 and 2 of a model of the test's own."""
    model = f"{request.node.originalname} {store.kind}"
    for number, result in enumerate(results):
        workspace = copy_workspace(result, tmp_path / str(number))
        prune = read_json(workspace.masks / "manifest.json")["settings"]["prune"]
        settings = change_settings(workspace, prune__pattern=prune["pattern"], register__model=model)
        register(workspace, settings, PROVENANCE)
    return workspace, model


def promote(ws: Workspace, model: str, version: str, rules: Promote = RULES, **options: Any) -> Any:
    number = number_of(ws, model, version)
    return decide(ws, model, number, rules, prove(ws, model, number, rules), **options)


def aliases(ws: Workspace, model: str) -> dict[str, str]:
    with tracking(ws) as client:
        return {alias: str(version) for alias, version in client.get_registered_model(model).aliases.items()}


def events(ws: Workspace, model: str) -> list[tuple[str, str]]:
    with tracking(ws) as client:
        return [(entry.event, entry.version) for entry in Ledger.open(client, model).entries()]


def test_promote_refuse_force_and_roll_back(registered: tuple[Workspace, str]) -> None:
    ws, model = registered
    first = promote(ws, model, "1")
    assert (first.promoted, first.previous, aliases(ws, model)["champion"]) == (True, None, "1")
    strict = Promote(max_ratio=0.5, proof=False)
    refused = promote(ws, model, "2", strict)
    assert (refused.promoted, [each.rule for each in refused.rulings if not each.passed]) == (False, ["max_ratio"])
    assert aliases(ws, model) == {"champion": "1", "challenger": "2"}
    forced = promote(ws, model, "2", strict, force=True, reason="a demo")
    assert (forced.promoted, forced.forced, forced.reason, forced.previous) == (True, True, "a demo", "1")
    assert aliases(ws, model)["champion"] == "2"
    back = go_back(ws, model, "the demo is over", None)
    assert (back.entry.version, back.entry.details["previous"]) == ("1", "2")
    assert aliases(ws, model) == {"champion": "1", "challenger": "2"}
    told = [
        ("keys_started", ""),
        ("registered", "1"),
        ("registered", "2"),
        ("verified", "1"),
        ("gate", "1"),
        ("promoted", "1"),
    ]
    told += [("gate", "2"), ("refused", "2"), ("gate", "2"), ("promoted", "2"), ("verified", "1"), ("rolled_back", "1")]
    assert events(ws, model) == told
    with tracking(ws) as client:
        made = find_version(client, model, "2")
        assert '"event":"promoted"' in made.tags["promotion"]
        logged = [file.path for file in client.list_artifacts(made.run_id, "promotion")]
        entries = Ledger.open(client, model).entries()
    assert logged == ["promotion/entry_000007.json", "promotion/entry_000009.json"]
    assert {entry.actor for entry in entries} == {key_name()}
    assert entries[9].details == {"forced": True, "reason": "a demo", "previous": "1"}
    record = history(ws, model)
    assert record["champion"] == "1"
    assert [(each["version"], each["decision"], each["reason"]) for each in record["decisions"]] == [
        ("1", "rolled back", "the demo is over"),
        ("2", "promoted by force", "a demo"),
        ("2", "refused", None),
        ("1", "promoted", None),
    ]
    for each in record["decisions"][1:3]:
        ((rule, limit, passed),) = [(rule["rule"], rule["limit"], rule["passed"]) for rule in each["rules"]]
        assert (rule, limit, passed) == ("max_ratio", 0.5, False)
    assert record["decisions"][3]["rules"] == []
    refusal = next(each for each in record["versions"][0]["events"] if each["event"] == "refused")
    assert refusal["details"] == {"rules": ["max_ratio"]}
    few = history(ws, model, limit=1)
    assert ([each["version"] for each in few["versions"]], len(few["decisions"])) == (["2"], 1)
    late = history(ws, model, since=datetime.now(UTC) + timedelta(hours=1))
    assert late["versions"] == late["decisions"] == []
    assert history(ws, model, since=datetime.now(UTC) - timedelta(hours=1)) == record


def test_history_and_diff_say_what_there_is(registered: tuple[Workspace, str]) -> None:
    ws, model = registered
    promote(ws, model, "1")
    newest, oldest = history(ws, model)["versions"]
    assert (newest["version"], newest["aliases"], newest["pattern"], newest["proof"]) == (
        "2",
        ["challenger"],
        "2:4",
        None,
    )
    assert (oldest["aliases"], oldest["proof"], oldest["commit"]) == (["champion"], "passed", "0123abc")
    assert [event["event"] for event in oldest["events"]] == ["registered", "verified", "gate", "promoted"]
    found = diff(ws, model, "champion", "2")
    assert found["settings"] == {"prune.pattern": ["unstructured", "2:4"]}
    assert found["calibration"] == {}
    assert "ratio" in found["figures"]
    assert all(each["moved"] and 0 < each["jaccard"] < 1 for each in found["masks"])
    assert found["moved"]["moved"] == sum(each["moved"] for each in found["masks"])
    assert [each["tensor"] for each in found["layers"]] == ["layer 0", "layer 1", "layer 2"]
    assert diff(ws, model, "1", "champion")["masks"][0]["moved"] == 0


def test_versions_are_compared_side_by_side(registered: tuple[Workspace, str]) -> None:
    ws, model = registered
    with tracking(ws) as client:
        run_id = find_version(client, model, "2").run_id
    record = compare(ws, model, ["1", run_id, "challenger"])
    assert [each["version"] for each in record["runs"]] == ["1", "2", "2"]
    assert record["settings"] == {"prune.pattern": ["unstructured", "2:4", "2:4"]}
    assert record["figures"]["ratio"][0] != record["figures"]["ratio"][1] == record["figures"]["ratio"][2]
    for runs, told in (
        (["1"], "compare takes two runs or more"),
        (["1", "9"], "no version or alias '9'"),
        (["1", "0" * 32], f"MLflow run {'0' * 32} has registered no version of"),
    ):
        with pytest.raises(InputError, match=told):
            compare(ws, model, runs)


def test_a_version_much_worse_than_the_champion_is_refused(registered: tuple[Workspace, str]) -> None:
    ws, model = registered
    promote(ws, model, "1")
    refused = promote(ws, model, "2", Promote(margin=0.0, max_ratio=None, proof=False))
    ruling = refused.rulings[0]
    assert (ruling.rule, ruling.passed) == ("margin", ruling.value <= ruling.limit)
    assert refused.promoted == ruling.passed


def test_nonsense_is_refused_and_nothing_is_recorded(registered: tuple[Workspace, str]) -> None:
    ws, model = registered
    promote(ws, model, "1")
    before = events(ws, model)
    for call, told in (
        (lambda: decide(ws, model, "1", RULES, None), "version 1 is the champion already"),
        (lambda: decide(ws, model, "2", RULES, None, force=True), "--force needs a reason"),
        (lambda: decide(ws, model, "9", RULES, None), "no version or alias '9'"),
        (lambda: go_back(ws, model, "why not", None), "no champion of .* before version 1"),
        (lambda: go_back(ws, model, "why not", "2"), "Version 2 of .* was never the champion"),
        (lambda: go_back(ws, model, " ", "2"), "A rollback needs a reason"),
    ):
        with pytest.raises(InputError, match=told):
            call()
    assert events(ws, model) == before


def test_a_damaged_version_is_not_gone_back_to(
    results: list[Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ws = copy_workspace(results[0], tmp_path / "ws")
    register(ws, load_settings(ws.params), PROVENANCE)
    shutil.rmtree(ws.masks)
    shutil.copytree(results[1].masks, ws.masks)
    for name in ("pruned", "metrics"):
        shutil.rmtree(getattr(ws, name))
        shutil.copytree(getattr(results[1], name), getattr(ws, name))
    register(ws, change_settings(ws, prune__pattern="2:4"), PROVENANCE)
    promote(ws, "tiny", "1")
    promote(ws, "tiny", "2")
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", "1")) as folder:
        (folder / "README.md").write_text("better")
    with pytest.raises(
        ProofError, match=r"version 1 is not proved \(files, configuration: README.md .*nothing was changed"
    ):
        go_back(ws, "tiny", "worse", None)
    assert aliases(ws, "tiny")["champion"] == "2"
    assert [event for event in events(ws, "tiny") if event[0] == "rolled_back"] == []
