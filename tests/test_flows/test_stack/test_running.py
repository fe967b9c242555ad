"""A stack that runs: a second start, a service that was killed, and what it leaves to others."""

import json
from typing import Any

import psutil
import pytest

from tests.test_flows.test_stack.conftest import RunningStack, answer

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


def services(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in told["services"]}


@pytest.mark.faults("kill -9 of MLflow's server")
def test_a_second_start_finds_it_running_and_starts_only_what_was_killed(stack: RunningStack) -> None:
    commands, ws = stack.commands, stack.ws
    first = answer(commands(ws, "dass", "stack", "up", "--json"))
    assert first["started"] == []
    assert set(first["accounts"]) >= {"reader", "runner", "releaser"}
    told = commands(ws, "dass", "stack", "up", "--mlflow-port", "1", status=2).stderr
    assert "The stack that runs has mlflow" in told

    before = services(first)
    psutil.Process(before["mlflow"]["pid"]).kill()  # the process that it serves with outlives it
    found = services(json.loads(commands(ws, "dass", "stack", "status", "--json", status=1).stdout))
    assert {name: each["state"] for name, each in found.items()} == {
        **dict.fromkeys(before, "works"),
        "mlflow": "ended",
    }
    again = answer(commands(ws, "dass", "stack", "up", "--json"))
    assert again["started"] == ["mlflow"]
    after = services(again)
    assert {name for name in after if after[name]["pid"] != before[name]["pid"]} == {"mlflow"}
    assert {each["state"] for each in after.values()} == {"works"}
    stack.as_account("reader")(ws, "dass", "doctor", status=None)


def test_only_loopback_is_listened_at(stack: RunningStack) -> None:
    state = stack.place.state()
    assert state is not None
    family = [psutil.Process(each.pid) for each in state.services.values()]
    family += [child for each in family for child in each.children(recursive=True)]
    heard = {line.laddr.ip for each in family for line in each.net_connections() if line.status == psutil.CONN_LISTEN}
    assert heard == {"127.0.0.1"}
