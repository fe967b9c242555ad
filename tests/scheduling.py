"""How `make test` shares the tests out among its processes."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

_FLOWS = "tests/test_flows/"
"""Their fixtures are a Prefect server and a workspace in which `dass run` has run: half a minute to make."""


class _FlowsTogether(LoadFileScheduling):
    """A file goes to one process, and all files of flows go to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return _FLOWS if nodeid.startswith(_FLOWS) else super()._split_scope(nodeid)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FlowsTogether | None:
    """Not for the slow tests: most of those are of flows, and one process would be left with them."""
    together = config.getoption("dist") == "loadfile" and "not slow" in config.getoption("markexpr")
    return _FlowsTogether(config, log) if together else None
