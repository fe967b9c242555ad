"""What an account may do on a server with MLflow's own basic-auth, which has no releasers, and where there are none."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.stack.accounts import Server
from tasks.registry.rights import REGISTER, RELEASE, MissingRight, check_right
from tasks.workspace.folder import Workspace
from tests.servers import mlflow_server
from tests.stores import Store

MODEL = "of-the-admin"


@dataclass(frozen=True)
class Guarded:
    """A server with accounts, and the password of everybody there."""

    uri: str
    password: str
    workspace: Workspace

    def enter(self, patch: pytest.MonkeyPatch, account: str) -> None:
        patch.setenv("MLFLOW_TRACKING_URI", self.uri)
        patch.setenv("MLFLOW_TRACKING_USERNAME", account)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", self.password)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """MLflow's basic-auth, with an account `kim` who may edit the model, and `ann` who may read it."""
    folder, password = tmp_path_factory.mktemp("guarded"), secrets.token_hex(12)
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission=READ\nadmin_username=admin\ndatabase_uri=sqlite:///{folder}/auth.db\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
    }
    with mlflow_server(f"sqlite:///{folder}/mlflow.db", folder, environment, "basic-auth") as uri:
        server = Server(uri, password)
        server("POST", "2.0/mlflow/registered-models/create", name=MODEL)
        for name in ("kim", "ann"):
            server("POST", "2.0/mlflow/users/create", username=name, password=password)
        grant = {"resource_type": "registered_model", "resource_id": MODEL, "permission": "EDIT"}
        server("POST", "3.0/mlflow/users/permissions/grant", username="kim", **grant)
        yield Guarded(uri, password, Workspace(folder))


@pytest.mark.slow
@pytest.mark.parametrize("right", [REGISTER, RELEASE])
def test_there_who_only_reads_is_refused_and_who_edits_may_do_everything(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    for account in ("kim", "admin"):
        guarded.enter(monkeypatch, account)
        check_right(guarded.workspace, MODEL, right)
    guarded.enter(monkeypatch, "ann")
    with pytest.raises(
        MissingRight, match=r"Account 'ann' at http://127.0.0.1:\d+ may not .*\(its permission there: READ\)"
    ):
        check_right(guarded.workspace, MODEL, right)
    check_right(guarded.workspace, "of-nobody", right)  # MLflow gives a model to whoever makes it


def test_where_there_are_no_accounts_everybody_may(store: Store) -> None:
    for right in (REGISTER, RELEASE):
        check_right(store.workspace, "of-nobody", right)


def test_nothing_is_asked_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    check_right(Workspace(tmp_path), "of-nobody", RELEASE)
    assert not list(tmp_path.iterdir())
