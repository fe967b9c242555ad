"""A tiny run for each test to break, and what its result would have been."""

from collections.abc import Callable

import pytest

from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import Commands
from tests.test_flows.test_compress import digests
from tests.test_flows.victim import Victim


@pytest.fixture
def undisturbed(finished: Workspace) -> dict[str, str]:
    """Digests of what a run makes that nothing meets."""
    return digests(finished)


@pytest.fixture
def victim(commands: Commands, new_workspace: Callable[[], Workspace], undisturbed: dict[str, str]) -> Victim:
    """A workspace in which nothing has run."""
    return Victim(commands, new_workspace(), undisturbed=undisturbed)
