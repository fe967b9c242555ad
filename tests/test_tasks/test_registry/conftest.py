"""A signing key of a test's own, and a version for those who only look."""

from pathlib import Path

import pytest

from tasks.registry.registration import Registration, register
from tasks.workspace.folder import Workspace
from tests.test_tasks.test_registry.test_registration import PROVENANCE
from tests.workspaces import change_settings, copy_workspace


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a key that no other test knows."""
    path = tmp_path / "keys" / "mine.pem"
    monkeypatch.setenv("DASS_SIGNING_KEY", str(path))
    for name in ("DASS_KEY_NAME", "DASS_SIGNING_KEY_PASSPHRASE", "DASS_SIGNING_KEY_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture(scope="session")
def registered(
    finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, Registration]:
    """A workspace whose result is registered, for those who only look."""
    ws = copy_workspace(finished_template, tmp_path_factory.mktemp("registered") / "ws")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return ws, register(ws, change_settings(ws), PROVENANCE)
