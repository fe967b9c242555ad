"""What would fail when a result is registered is refused before any work."""

import os
import sqlite3
from contextlib import closing

import pytest

from dass.errors import InputError
from tasks.registry.readiness import check_names, check_ready
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.workspaces import change_settings


@pytest.mark.parametrize("name", [" ", ".", "..", "a\nb", "x" * 300])
def test_a_model_name_that_mlflow_does_not_take_is_refused(name: str, settings: Settings) -> None:
    register = settings.register_.model_copy(update={"model": name})
    with pytest.raises(InputError, match=r"register\.model is"):
        check_names(settings.model_copy(update={"register_": register}))


@pytest.mark.parametrize("name", ["dass ledger", "x" * 600])
def test_an_experiment_name_that_cannot_be_used_is_refused(name: str, finished: Workspace) -> None:
    with pytest.raises(InputError, match=r"register\.experiment is"):
        check_ready(finished, change_settings(finished, register__experiment=name))


def test_a_deleted_experiment_is_refused_before_any_work(finished: Workspace, settings: Settings) -> None:
    check_ready(finished, settings)
    with tracking(finished) as client:
        client.delete_experiment(client.get_experiment_by_name("tests").experiment_id)
    with pytest.raises(InputError, match="was deleted in MLflow"):
        check_ready(finished, settings)


def test_an_experiment_whose_files_nobody_may_write_is_refused(finished: Workspace, settings: Settings) -> None:
    with tracking(finished) as client:
        client.create_experiment("tests", artifact_location="file:///proc/nowhere")
    with pytest.raises(InputError, match="/proc/nowhere, and /proc cannot be written"):
        check_ready(finished, settings)


def test_a_database_that_cannot_be_written_is_told(finished: Workspace, settings: Settings) -> None:
    with closing(sqlite3.connect(finished.root / "mlflow.db")) as database:
        database.execute("CREATE TRIGGER no BEFORE INSERT ON experiment_tags BEGIN SELECT RAISE(ABORT, 'no'); END")
        database.commit()
    with pytest.raises(Exception, match="MLflow at sqlite"):
        check_ready(finished, settings)


def test_a_fresh_workspace_gets_no_database_from_being_asked(finished: Workspace, settings: Settings) -> None:
    os.unlink(finished.root / "mlflow.db")
    check_ready(finished, settings)
    assert not (finished.root / "mlflow.db").exists()
