"""The embedded database, asked without MLflow, answers as MLflow does, and leaves to MLflow what is not plain."""

import sqlite3
from contextlib import closing
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision

from tasks.registry.embedded import SCHEMA, EmbeddedClient, NotThere, is_plain
from tasks.registry.embedded import _RunData as _Data
from tasks.registry.place import database, embedded_uri
from tasks.registry.tracking import reading, tracking
from tasks.registry.versions import all_versions, find_version
from tasks.workspace.folder import Workspace

MODEL = "it's 100% größer #1? & more"
MODEL_READ = ("name", "creation_timestamp", "tags", "aliases")
VERSION_READ = ("name", "version", "run_id", "source", "description", "tags", "aliases")
RUN_READ = ("info.run_id", "info.run_name", "info.experiment_id", "info.status", "info.lifecycle_stage")


def refuse() -> Any:
    pytest.fail("MLflow was asked")


@pytest.fixture
def filled(finished: Workspace) -> Workspace:
    """Two models; the first has three versions, of which the second was deleted, and one alias."""
    with tracking(finished) as client:
        for name in (MODEL, "other"):
            client.create_registered_model(name, tags={"ledger": "x", "empty": ""})
            for number in (1, 2, 3):
                run = client.create_run("0", tags={"a": "b"}, run_name=f"run {number}").info.run_id
                client.log_param(run, "entry.000000", "line", synchronous=True)
                logged = client.create_logged_model("0", "logged", source_run_id=run, tags={"c": "d"})
                tags = {"ledger.head": f"{number} digest"}
                client.create_model_version(
                    name, f"models:/{logged.model_id}", run, tags=tags, description="told", model_id=logged.model_id
                )
        client.set_registered_model_alias(MODEL, "champion", "3")
        client.delete_model_version(MODEL, "2")
    return finished


def clients(ws: Workspace) -> tuple[EmbeddedClient, MlflowClient]:
    path, uri = database(ws), embedded_uri(ws)
    assert is_plain(path)
    return EmbeddedClient(path, uri, refuse), MlflowClient(uri, uri)


def read(found: Any, names: tuple[str, ...]) -> list[Any]:
    return [str(value) if name == "version" else value for name in names for value in [attrgetter(name)(found)]]


def test_the_known_schema_is_the_newest_of_the_mlflow_that_is_installed() -> None:
    assert _get_latest_schema_revision() == SCHEMA


def test_the_answers_are_mlflow_s(filled: Workspace) -> None:
    ours, theirs = clients(filled)
    for client in (ours, theirs):
        assert [str(made.version) for made in all_versions(client, MODEL)] == ["3", "1"]
        assert [str(made.version) for made in all_versions(client, "none")] == []
    assert read(ours.get_registered_model(MODEL), MODEL_READ) == read(theirs.get_registered_model(MODEL), MODEL_READ)
    made = [client.get_model_version(MODEL, "3") for client in (ours, theirs)]
    assert read(made[0], VERSION_READ) == read(made[1], VERSION_READ)
    assert [str(client.get_model_version_by_alias(MODEL, "champion").version) for client in (ours, theirs)] == ["3"] * 2
    assert read(find_version(ours, MODEL, "champion"), VERSION_READ) == read(made[1], VERSION_READ)
    listed = [sorted(read(each, VERSION_READ) for each in all_versions(client, "other")) for client in (ours, theirs)]
    assert listed[0] == listed[1]
    runs = [client.get_run(made[0].run_id) for client in (ours, theirs)]
    assert read(runs[0], RUN_READ) == read(runs[1], RUN_READ)
    assert runs[0].data.params == runs[1].data.params
    assert runs[0].data.tags == runs[1].data.tags
    logged = [client.get_logged_model(made[0].source.removeprefix("models:/")) for client in (ours, theirs)]
    assert logged[0].artifact_location == logged[1].artifact_location
    assert logged[0].tags == logged[1].tags
    models = [{each.name: each.tags for each in client.search_registered_models()} for client in (ours, theirs)]
    assert models[0] == models[1]
    experiments = [client.get_experiment_by_name("Default") for client in (ours, theirs)]
    assert experiments[0].experiment_id == experiments[1].experiment_id
    assert ours.get_experiment_by_name("none") is None
    for asked in ("tags.`a` = 'b'", "tags.`a` = 'c'", "attributes.status = 'RUNNING'", "attributes.status = 'FAILED'"):
        found = [client.search_runs(["0"], asked) for client in (ours, theirs)]
        assert [read(each, RUN_READ) for each in found[0]] == [read(each, RUN_READ) for each in found[1]]
        assert [each.data for each in found[0]] == [_Data(each.data.params, each.data.tags) for each in found[1]]


@pytest.mark.parametrize("asked", [("none", "1"), (MODEL, "2"), (MODEL, "7"), (MODEL, "9" * 30), (MODEL, "nobody")])
def test_what_is_not_there_is_not_there(filled: Workspace, asked: tuple[str, str]) -> None:
    ours, theirs = clients(filled)
    messages = []
    for client in (ours, theirs):
        with pytest.raises(Exception, match="MLflow has no model|has no version or alias") as raised:
            find_version(client, *asked)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    with pytest.raises(NotThere, match="no registered model 'none'"):
        ours.get_registered_model("none")


def test_what_is_not_plain_is_mlflow_s_to_answer(filled: Workspace) -> None:
    with reading(filled) as client:
        assert isinstance(client, EmbeddedClient)
        assert str(client.get_model_version_by_alias(MODEL, "latest").version) == "3"
        with pytest.raises(MlflowException, match="not found"):
            client.get_run("f" * 32)
        client.set_registered_model_alias(MODEL, "champion", "1")
        assert str(client.get_model_version_by_alias(MODEL, "champion").version) == "1"


@pytest.mark.parametrize(
    "change",
    [
        "update alembic_version set version_num = 'another'",
        "insert into registered_model_tags (name, key, value) values ('other', 'mlflow.prompt.is_prompt', 'true')",
        "update registered_models set workspace = 'team' where name = 'other'",
        "drop table alembic_version",
    ],
)
def test_a_database_of_another_kind_is_left_to_mlflow(filled: Workspace, change: str) -> None:
    with closing(sqlite3.connect(database(filled))) as connection, connection:
        connection.execute(change)
    assert not is_plain(database(filled))


def test_a_file_that_is_none_or_locked_is_left_to_mlflow(
    filled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.registry.embedded._BUSY_SECONDS", 0.05)
    assert not is_plain(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("no database" * 100)
    assert not is_plain(tmp_path / "text.db")
    with closing(sqlite3.connect(database(filled), isolation_level=None)) as connection:
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("begin exclusive")
        assert not is_plain(database(filled))
