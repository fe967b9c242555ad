"""A workspace for sources."""

from pathlib import Path

import pytest

from tasks.workspace.folder import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace's folder; sources may be named relative to it."""
    return Workspace(tmp_path)
