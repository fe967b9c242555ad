"""The registry's commands as a person types them."""

import json
import shutil
from pathlib import Path

import pytest

from flows.cli.main import run_command
from tasks.workspace.folder import Workspace
from tests.receivers import receiver
from tests.test_flows.conftest import Commands, typed


@pytest.mark.slow
def test_from_a_run_to_a_champion_and_back_and_a_webhook_hears_of_each_decision(
    finished: Workspace, commands: Commands
) -> None:
    promoted = json.loads(commands(finished, "dass", "promote", "--json").stdout)
    assert (promoted["promoted"], promoted["version"], promoted["previous"]) == (True, "1", None)
    with receiver() as there:
        commands.environment["TEST_HOOK"] = there.address
        other = ["-S", "prune.pattern=2:4", "-S", "promote.max_ratio=0.001", "-S", "notify.urls=[env:TEST_HOOK]"]
        answer = json.loads(commands(finished, "dass", "run", "--json", *other, "--promote", status=1).stdout)
        assert [rule["rule"] for rule in answer["decision"]["rulings"] if not rule["passed"]] == ["max_ratio"]
        told = commands(finished, "dass", "promote", "2", "--force", "--reason", "a demo").stdout
        assert "version 2: promoted by force" in told
        commands(finished, "dass", "rollback", "--reason", "the demo is over")
        del commands.environment["TEST_HOOK"]
    refused, forced, back = there.bodies
    assert [each["type"] for each in there.bodies] == ["dass.refused", "dass.promoted", "dass.rolled_back"]
    assert [rule["rule"] for rule in refused["data"]["rules"]] == ["max_ratio"]
    assert (refused["data"]["version"], refused["data"]["by"]) == ("2", answer["decision"]["signed_by"])
    assert refused["data"]["runs"]["mlflow"] == answer["run_id"]
    assert forced["data"]["forced"]
    assert (forced["data"]["why"], back["data"]["why"]) == ("a demo", "the demo is over")
    assert (back["data"]["version"], back["data"]["previous"]) == ("1", "2")
    history = json.loads(commands(finished, "dass", "history", "--json").stdout)
    newest, oldest = history["versions"]
    assert (newest["aliases"], oldest["aliases"]) == (["challenger"], ["champion"])
    events = [event["event"] for event in newest["events"]]
    assert events == ["registered", "verified", "gate", "refused", "verified", "gate", "promoted"]
    moved = json.loads(commands(finished, "dass", "diff", "champion", "challenger", "--json").stdout)
    assert moved["settings"] == {"prune.pattern": ["unstructured", "2:4"]}
    assert all(0 < each["share"] < 1 for each in moved["masks"])


def test_a_promotion_by_hand_starts_no_server_and_is_in_the_ledger(
    finished: Workspace, commands: Commands, tmp_path: Path
) -> None:
    alone = commands.alone(tmp_path / "prefect")
    promoted = json.loads(alone(finished, "dass", "promote", "--json").stdout)
    assert (promoted["promoted"], promoted["version"]) == (True, "1")
    assert not (tmp_path / "prefect" / "prefect.db").exists()
    assert json.loads(alone(finished, "dass", "history", "--json").stdout)["champion"] == "1"


@pytest.mark.slow
def test_a_fresh_workspace_with_the_store_and_the_remote_proves_and_replays(
    finished: Workspace, commands: Commands, tmp_path: Path
) -> None:
    commands(finished, "dvc", "remote", "add", "-d", "store", str(tmp_path / "remote"))
    commands(finished, "dvc", "push")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "dass.lock.json"):
        shutil.copy(finished.root / name, fresh)
    shutil.copytree(finished.root / ".dvc", fresh / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    store = f"sqlite:///{finished.root / 'mlflow.db'}"
    ws = Workspace.at(fresh)
    proofs = json.loads(
        commands(ws, "dass", "verify", "challenger", "--replay", "--json", MLFLOW_TRACKING_URI=store).stdout
    )
    assert [(step["name"], step["passed"]) for step in proofs[0]["steps"]] == [
        (name, True) for name in ("files", "ledger", "weights", "pattern", "configuration", "replay")
    ]
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(fresh / ".dvc" / "cache")
    refused = commands(ws, "dass", "verify", "1", "--replay", "--json", status=2, MLFLOW_TRACKING_URI=store)
    assert "DVC has not got artifacts/base" in json.loads(refused.stdout)["error"]["message"]  # no failed proof


def test_a_versions_checkpoint_is_written_anywhere(finished: Workspace, tmp_path: Path) -> None:
    typed(finished, "materialize", "challenger", str(tmp_path / "out"))
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (finished.pruned / "model.safetensors").read_bytes()
    _, said = typed(finished, "materialize", "challenger", str(tmp_path / "out"), status=2)
    assert "exists and is not empty" in said


@pytest.mark.slow
def test_a_tokenizer_that_was_edited_and_committed_is_not_registered_and_the_named_command_mends_it(
    finished: Workspace, commands: Commands
) -> None:
    file = finished.pruned / "tokenizer_config.json"
    written = file.read_text()
    file.unlink()  # it may be a link into DVC's cache
    file.write_text(written.replace('"</s>"', '"<s>"'))
    commands(finished, "dvc", "commit", "--force", "materialize")
    again = ["dass", "run", "-S", "register.model=again"]
    refused = commands(finished, *again, status=2)
    assert 'artifacts/pruned/tokenizer_config.json: eos_token is "<s>", expected "</s>"' in refused.stderr
    assert "dvc repro -s -f materialize" in refused.stderr
    commands(finished, "dvc", "repro", "-s", "-f", "materialize")
    assert file.read_text() == written
    commands(finished, *again)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["verify"], "verify takes a VERSION, a FOLDER, or --all"),
        (["verify", "7"], "has no version or alias '7'"),
        (["promote", "7"], "has no version or alias '7'"),
        (["promote", "--force"], "--force needs a reason"),
        (["rollback", "--reason", "x"], "has ever been the champion"),
        (["history", "--model", "nobody"], "no registered model 'nobody'"),
        (["diff", "1", "9"], "has no version or alias '9'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_told_in_one_line(
    command: list[str],
    told: str,
    finished: Workspace,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", commands.environment["PREFECT_API_URL"])
    assert run_command([*command, "--workspace", str(finished.root)]) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if "was copied or moved from" not in line]  # the fixture did
    assert len(lines) == 1
    assert told in lines[0]


def test_the_history_goes_into_one_file_that_is_checked_anywhere(
    finished: Workspace, commands: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "history.zip"
    exported = json.loads(typed(finished, "export-audit", str(file), "--json")[0])
    anywhere = Workspace(tmp_path / "anywhere")
    anywhere.root.mkdir()
    found = json.loads(commands(anywhere, "dass", "audit", str(file), "--root", exported["root"], "--json").stdout)
    assert (found["holds"], found["champion"], found["versions"]) == (True, None, ["1"])
    assert [entry["event"] for entry in found["entries"]] == ["keys_started", "registered"]
    table = commands(anywhere, "dass", "audit", str(file)).stdout
    assert f"{exported['root']}  " in table
    assert not any(anywhere.root.iterdir())
    commands(finished, "dass", "export-audit", str(file), status=2)
