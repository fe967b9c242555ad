"""What `make test-faults` injects: each test's marker names its fault, and the end of the session counts them.

@pytest.mark.faults("kill -9 of a run", times=10)
"""

from collections import Counter

import pytest

_NOTE = "fault"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("faults"):
            item.user_properties.append((_NOTE, [mark.args[0], mark.kwargs.get("times", 1)]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each fault: how often it was injected, and in how many tests something was lost."""
    if terminalreporter.config.getoption("markexpr") != "faults":
        return
    counted: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for fault, times in (value for name, value in report.user_properties if name == _NOTE):
                counted.setdefault(fault, Counter())[outcome] += times if outcome == "passed" else 1
    if counted:
        terminalreporter.section("faults injected")
    for fault, how in sorted(counted.items()):
        left = "".join(f", {how[other]} tests {other}" for other in ("failed", "skipped") if how[other])
        terminalreporter.line(f"{fault:60} {how['passed']:4d} times{left or ', nothing lost'}")
