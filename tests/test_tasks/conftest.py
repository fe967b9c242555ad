"""A finished tiny workspace and a migrated MLflow database, each made once and copied for every test."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings
from tests.stores import Store
from tests.workspaces import copy_workspace, finish_workspace, prune_again


@pytest.fixture(scope="session")
def finished_template(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Every stage has run, and mlflow.db is migrated and empty: MLflow takes seconds for that."""
    workspace, _ = finish_workspace(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tracking(workspace) as client:
            client.search_experiments()
    return workspace


@pytest.fixture(scope="session")
def results(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[Workspace]:
    """Two results of one model: half of its weights, and 2:4."""
    other = copy_workspace(finished_template, tmp_path_factory.mktemp("results") / "2-4")
    prune_again(other, prune__pattern="2:4")
    return [finished_template, other]


@pytest.fixture
def finished(finished_template: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of the test's own in which every stage has run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy_workspace(finished_template, tmp_path / "workspace")


@pytest.fixture
def settings(finished: Workspace) -> Settings:
    """The settings `finished` was made with."""
    return load_settings(finished.params)


@pytest.fixture
def migrated_db(finished_template: Workspace, tmp_path: Path) -> Path:
    """An empty MLflow database outside any workspace."""
    return Path(shutil.copy(finished_template.root / "mlflow.db", tmp_path / "server.db"))


@pytest.fixture
def client(store: Store) -> Iterator[MlflowClient]:
    """MLflow on the store that this test is given: SQLite, and a server on Postgres."""
    with tracking(store.workspace) as made:
        yield made


@pytest.fixture
def model() -> str:
    """A registered model's name that nothing else has, with whatever has to be quoted."""
    return f'it\'s a "model", 100% größer #1? & more {uuid.uuid4().hex}'
