"""Registration against real MLflow: SQLite in the workspace, and a server on this machine."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from dass.errors import InputError, UnavailableError
from dass.files import read_json, sha256_file
from tasks.registry import ledger, ledger_run, publishing
from tasks.registry.checked import checked_version
from tasks.registry.loading import load
from tasks.registry.registration import Registration, check_reachable, register
from tasks.registry.run_record import DIGESTS
from tasks.registry.tracking import TrackingError
from tasks.registry.versions import folder_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.processes import register_result, start
from tests.servers import mlflow_server
from tests.workspaces import change_settings, copy_workspace

PROVENANCE: dict[str, Any] = {
    "git_commit": "0123abc",
    "git_dirty": False,
    "dvc": {"artifacts/base": "aa.dir", "metrics/evaluation.json": "bb"},
    "seconds": {"prune": 1.5, "evaluate": 0.25},
}


def client_of(workspace: Workspace) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")


def all_runs(client: MlflowClient) -> list[Any]:
    """But the ledgers'."""
    experiments = [made.experiment_id for made in client.search_experiments() if made.name != ledger_run.EXPERIMENT]
    return list(client.search_runs(experiments))


def all_models(client: MlflowClient) -> list[Any]:
    return list(client.search_logged_models([experiment.experiment_id for experiment in client.search_experiments()]))


def test_the_registered_model_loads_and_generates_text(
    registered: tuple[Workspace, Registration], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = registered
    assert (made.model, made.version, made.created) == ("tiny", "1", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.tracking_uri)
    pipeline = mlflow.transformers.load_model("models:/tiny@challenger")
    text = pipeline("the model keeps", max_new_tokens=4)[0]["generated_text"]
    assert text.startswith("the model keeps")
    assert len(text) > len("the model keeps")


def test_the_registered_weights_are_the_files_of_the_pruned_checkpoint(
    registered: tuple[Workspace, Registration],
) -> None:
    finished, _ = registered
    [copied] = (finished.root / "mlartifacts").rglob("model.safetensors")
    assert copied.read_bytes() == (finished.pruned / "model.safetensors").read_bytes()


def test_a_version_names_where_it_comes_from(registered: tuple[Workspace, Registration]) -> None:
    finished, _ = registered
    client = client_of(finished)
    version = client.get_model_version_by_alias("tiny", "challenger")
    tags = version.tags
    manifest, evaluation = read_json(finished.masks / "manifest.json"), read_json(finished.metrics / "evaluation.json")
    assert tags["git_commit"] == "0123abc"
    assert tags["git_dirty"] == "false"
    assert float(tags["pruned.perplexity"]) == evaluation["pruned"]["perplexity"]
    assert float(tags["sparsity.mlp"]) == 0.5
    run = client.get_run(version.run_id)
    assert (run.data.tags["mlflow.source.name"], run.data.tags["mlflow.source.git.commit"]) == ("dass run", "0123abc")
    digests = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{DIGESTS}")
    assert digests["dvc"] == PROVENANCE["dvc"]
    assert digests["base"] == manifest["base"]["digest"]
    assert digests["masks"] == manifest["masks"]["digest"]
    assert digests["fingerprint"] == manifest["fingerprint"]
    assert digests["manifest"] == sha256_file(finished.masks / "manifest.json")
    longest = max((len(value) for name, value in tags.items() if name != "ledger.head"), default=0)
    assert longest < 32, tags  # what people read


def test_a_workspace_outside_git_says_so(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, {**PROVENANCE, "git_commit": None, "git_dirty": None})
    tags = client_of(finished).get_model_version("tiny", "1").tags
    assert (tags["git_commit"], tags["git_dirty"]) == ("none", "unknown")


def test_the_same_result_is_registered_once(
    registered: tuple[Workspace, Registration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    finished, first = registered
    second = register(finished, change_settings(finished), {**PROVENANCE, "seconds": {}})
    assert second == Registration(**{**vars(first), "created": False})
    client = client_of(finished)
    assert len(client.search_model_versions()) == len(all_runs(client)) == 1


def test_another_result_is_a_new_version_and_the_new_challenger(finished: Workspace, settings: Settings) -> None:
    first = register(finished, settings, PROVENANCE)
    changed = change_settings(finished, engine__batch_tokens=64)
    second = register(finished, changed, PROVENANCE)
    assert (second.version, second.created) == ("2", True)
    client = client_of(finished)
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "2"

    again = register(finished, settings, PROVENANCE)  # back to what version 1 holds
    assert (again.version, again.created) == (first.version, False)
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "1"


def test_the_same_result_under_another_name_is_another_model(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    renamed = register(finished, change_settings(finished, register__model='it\'s "tiny" 2'), PROVENANCE)
    assert (renamed.model, renamed.version, renamed.created) == ('it\'s "tiny" 2', "1", True)


def test_a_failure_while_logging_leaves_a_failed_run_and_nothing_else(finished: Workspace, settings: Settings) -> None:
    (finished.evaluation / "tokens.safetensors").write_bytes(b"damaged")  # needed last of all that is logged
    with pytest.raises(Exception, match="header"):
        register(finished, settings, PROVENANCE)
    client = client_of(finished)
    assert [run.info.status for run in all_runs(client)] == ["FAILED"]
    assert client.search_registered_models() == []
    assert all_models(client) == []
    assert list((finished.root / "mlartifacts").rglob("*.safetensors")) == []


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interruption_before_the_ledgers_entry_removes_the_version(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(finished, settings, PROVENANCE)
    for changes in ({"engine__batch_tokens": 64}, {"register__model": "new"}):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ledger.Ledger, "record", interrupted)
            register(finished, change_settings(finished, **changes), PROVENANCE)
    client = client_of(finished)
    assert [str(made.version) for made in client.search_model_versions()] == ["1"]
    assert sorted(run.info.status for run in all_runs(client)) == ["FINISHED", "KILLED", "KILLED"]
    assert [model.name for model in client.search_registered_models()] == ["tiny"]


def test_an_interruption_behind_the_ledgers_entry_is_finished_by_the_next_run(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(finished, settings, PROVENANCE)
    changed = change_settings(finished, engine__batch_tokens=64)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "_point_alias", interrupted)
        register(finished, changed, PROVENANCE)
    made = register(finished, changed, PROVENANCE)
    client = client_of(finished)
    assert (made.version, made.created) == ("2", False)
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "2"
    assert {run.info.status for run in all_runs(client)} == {"FINISHED"}
    assert {run.info.run_name for run in all_runs(client)} == {"dass 50% #1", "dass 50% #2"}
    assert 'dass.load("models:/tiny/2")' in client.get_model_version("tiny", "2").description


def test_a_process_killed_behind_the_version_is_completed(finished: Workspace, settings: Settings) -> None:
    made = register(finished, settings, PROVENANCE)
    client = client_of(finished)
    client.delete_registered_model_alias("tiny", "challenger")
    client.update_run(made.run_id, "RUNNING")
    assert not register(finished, settings, PROVENANCE).created
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "1"
    assert client.get_run(made.run_id).info.status == "FINISHED"


def test_the_ledgers_entry_says_what_was_registered(registered: tuple[Workspace, Registration]) -> None:
    finished, _ = registered
    assert not register(finished, change_settings(finished), PROVENANCE).created
    client = client_of(finished)
    tags = client.get_model_version("tiny", "1").tags
    [_, entry] = ledger.Ledger.open(client, "tiny").entries()
    assert (entry.event, entry.version) == ("registered", "1")
    assert entry.manifest == sha256_file(finished.masks / "manifest.json")
    manifest = read_json(finished.masks / "manifest.json")
    assert {name: entry.details[name] for name in ("masks", "base")} == {
        name: manifest[name]["digest"] for name in ("masks", "base")
    }
    assert {name: entry.details[name] for name in ("method", "pattern")} == {
        name: tags[name] for name in ("method", "pattern")
    }
    assert entry.details["figures"]["ratio"] == read_json(finished.metrics / "evaluation.json")["ratio"]
    with folder_of(client, client.get_model_version("tiny", "1")) as folder:
        assert entry.details["signature"] == sha256_file(folder / "dass" / "model.sig")
    assert tags["ledger.head"] == entry.head


def test_a_failure_with_a_new_model_leaves_no_ledger(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.Ledger, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        register(finished, settings, PROVENANCE)
    client = client_of(finished)
    experiment = client.get_experiment_by_name(ledger_run.EXPERIMENT)
    assert list(client.search_runs([experiment.experiment_id])) == []


def test_nothing_is_registered_behind_a_broken_ledger(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    with closing(sqlite3.connect(finished.root / "mlflow.db")) as database, database:
        database.execute("UPDATE params SET value = '{}' WHERE key = 'entry.000000'")
    with pytest.raises(ledger.BrokenLedger, match="entry 0 was edited"):
        register(finished, change_settings(finished, engine__batch_tokens=64), PROVENANCE)
    client = client_of(finished)
    assert [str(made.version) for made in client.search_model_versions()] == ["1"]
    assert [run.info.status for run in all_runs(client)] == ["FINISHED"]


def killed_before_call(finished: Workspace, step: int) -> bool:
    """Register a model of its own, killed before that call of MLflow; whether there was such a call."""
    settings = change_settings(finished, register__model=f"killed {step}")
    process = start(register_result, finished, settings, PROVENANCE, step)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def assert_nothing_is_left_but_versions(finished: Workspace) -> None:
    client = client_of(finished)
    versions = list(client.search_model_versions())
    assert {run.info.status for run in all_runs(client)} <= {"FINISHED", "KILLED"}
    assert sorted(run.info.run_id for run in all_runs(client) if run.info.status == "FINISHED") == sorted(
        made.run_id for made in versions
    )
    assert len(all_models(client)) == len(versions)
    assert len(list((finished.root / "mlartifacts").rglob("model.safetensors"))) == len(versions)
    assert {model.name for model in client.search_registered_models()} == {made.name for made in versions}
    [book] = [made for made in client.search_experiments() if made.name == ledger_run.EXPERIMENT]
    assert len(client.search_runs([book.experiment_id])) == len({made.name for made in versions})
    for made in versions:
        assert [e.event for e in ledger.Ledger.open(client, made.name).entries()] == ["keys_started", "registered"]
    assert list((finished.private / "registering").iterdir()) == []
    assert list(finished.private.glob("*.partial")) == []


@pytest.mark.slow
def test_what_killed_registrations_began_is_cleared_by_the_next_one(finished: Workspace, settings: Settings) -> None:
    for step in (8, 20):
        assert killed_before_call(finished, step)
    register(finished, settings, PROVENANCE)
    assert_nothing_is_left_but_versions(finished)


@pytest.mark.faults("kill -9 in a registration", times=20)
@pytest.mark.slow
def test_a_registration_killed_before_every_call_is_cleared_by_the_next_one(
    finished: Workspace, settings: Settings
) -> None:
    step = 1
    while killed_before_call(finished, step):
        step += 1
    assert step > 20
    register(finished, settings, PROVENANCE)
    assert_nothing_is_left_but_versions(finished)


def test_a_result_that_is_not_complete_is_refused(finished: Workspace, settings: Settings) -> None:
    (finished.metrics / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"No .*evaluation\.json.* Run: dass run"):
        register(finished, settings, PROVENANCE)
    assert all_runs(client_of(finished)) == []


def test_a_deleted_experiment_is_refused(finished: Workspace, settings: Settings) -> None:
    client = client_of(finished)
    client.delete_experiment(client.create_experiment("tests"))
    with pytest.raises(InputError, match="register.experiment 'tests' was deleted in MLflow"):
        register(finished, settings, PROVENANCE)


def test_a_folder_with_an_odd_name_is_no_hindrance(finished_template: Workspace, tmp_path: Path) -> None:
    workspace = copy_workspace(finished_template, tmp_path / "größer #1 50%20 & 'more'")
    made = register(workspace, change_settings(workspace), PROVENANCE)
    assert made.created
    assert list((workspace.root / "mlartifacts").rglob("model.safetensors"))


def test_registering_is_silent_and_leaves_the_environment_alone(
    finished: Workspace, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    register(finished, settings, PROVENANCE)
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_the_callers_own_run_stays_as_it_was(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.root / 'mlflow.db'}")
    with mlflow.start_run() as run:
        made = register(finished, settings, PROVENANCE)
        assert mlflow.active_run().info.run_id == run.info.run_id
    client = client_of(finished)
    assert client.get_run(made.run_id).info.status == "FINISHED"
    own = client.get_run(run.info.run_id)
    assert (own.data.params, own.data.metrics, own.inputs.dataset_inputs) == ({}, {}, [])
    assert own.info.status == "FINISHED"


@pytest.fixture
def server(migrated_db: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server that keeps its files itself."""
    with mlflow_server(f"sqlite:///{migrated_db}", tmp_path) as uri:
        yield uri


def test_a_server_registers_serves_and_recognises_the_result(
    finished: Workspace, settings: Settings, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    check_reachable(finished)
    made = register(finished, settings, PROVENANCE)
    assert (made.version, made.created, made.tracking_uri) == ("1", True, server)
    assert not register(finished, settings, PROVENANCE).created
    assert not (finished.root / "mlartifacts").exists()
    pipeline = mlflow.transformers.load_model("models:/tiny@challenger")
    assert pipeline("the model", max_new_tokens=4)[0]["generated_text"].startswith("the model")

    masks_only = register(finished, change_settings(finished, register__artifact="masks"), PROVENANCE)
    assert masks_only.version == "2"
    client = MlflowClient(server)
    for number in ("1", "2"):
        with checked_version(client, "tiny", number).folder() as folder:
            assert (folder / "dass" / "manifest.json").is_file()
    weights = [load(f"models:/tiny/{number}", base=finished.base).state_dict() for number in (1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (finished.evaluation / "tokens.safetensors").write_bytes(b"damaged")
    with pytest.raises(Exception, match="header"):
        register(finished, change_settings(finished, engine__batch_tokens=64), PROVENANCE)
    assert sorted(str(version.version) for version in client.search_model_versions()) == ["1", "2"]
    assert len(all_models(client)) == 2


def test_a_refusal_of_mlflow_is_one_line(finished: Workspace, settings: Settings) -> None:
    with pytest.raises(TrackingError, match=r"^MLflow at sqlite:.*"):
        register(finished, settings, {**PROVENANCE, "flow_run": {"id": "0f1e", "name": "owl", "a\nb": "x"}})


def located(workspace: Workspace) -> list[str]:
    """Every location that the workspace's database names."""
    columns = ("experiments.artifact_location", "runs.artifact_uri", "logged_models.artifact_location")
    with closing(sqlite3.connect(workspace.root / "mlflow.db")) as database:
        return [
            str(value)
            for table, _, column in (name.partition(".") for name in (*columns, "model_versions.storage_location"))
            for (value,) in database.execute(f"select {column} from {table}")
        ]


def test_a_copy_or_a_renamed_workspace_registers_into_itself(
    finished: Workspace, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(finished, settings, PROVENANCE)
    assert all(location.startswith(finished.root.as_uri()) for location in located(finished))
    copy = copy_workspace(finished, tmp_path / "copy 100% #1 ü")
    finished.root.rename(tmp_path / "renamed")
    renamed = Workspace(tmp_path / "renamed")
    for workspace in (copy, renamed):
        caplog.clear()
        assert register(workspace, settings, PROVENANCE).created is False
        [told] = [record.message for record in caplog.records if "was copied or moved from" in record.message]
        assert told.startswith(f"{workspace.root} was copied or moved from {finished.root}: ")
        assert register(workspace, change_settings(workspace, register__artifact="masks"), PROVENANCE).created
        assert all(location.startswith(f"{workspace.root.as_uri()}/") for location in located(workspace))
        assert len(list((workspace.root / "mlartifacts" / "models").iterdir())) == 2
    assert not finished.root.exists()


def test_registered_before_is_said_only_where_the_files_are(finished: Workspace, settings: Settings) -> None:
    register(finished, settings, PROVENANCE)
    [weights] = (finished.root / "mlartifacts" / "models").rglob("model.safetensors")
    weights.unlink()
    with pytest.raises(UnavailableError, match=f"tiny version 1 is registered, and its files are gone: no {weights}"):
        register(finished, settings, PROVENANCE)
    client_of(finished).delete_model_version("tiny", "1")
    assert register(finished, settings, PROVENANCE).created


def test_an_experiment_whose_folder_is_gone_is_refused_by_both_paths(
    finished: Workspace, settings: Settings, tmp_path: Path, migrated_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{migrated_db}")
    register(finished, settings, PROVENANCE)
    finished.root.rename(tmp_path / "renamed")
    renamed = Workspace(tmp_path / "renamed")
    with pytest.raises(InputError, match=f"{finished.root}/mlartifacts, which is gone, .* {renamed.root}"):
        register(renamed, change_settings(renamed, engine__batch_tokens=64), PROVENANCE)
