"""A stack that runs: a second start, a service that was killed, what it leaves to others, and what its worker frees."""

import json
from typing import Any
from uuid import UUID

import psutil
import pytest

from dass.files import read_json
from tests.test_flows.test_compress import wait_for
from tests.test_flows.test_stack.conftest import RunningStack, answer
from tests.test_flows.victim import SECONDS

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


def worked(stack: RunningStack, deployment: UUID, **parameters: Any) -> UUID:
    """Have the worker do a deployment's run, and wait until it is completed."""
    with stack.prefect() as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id

        def state() -> Any:
            return client.read_flow_run(run).state

        wait_for(lambda: state().is_final(), seconds=SECONDS)
        assert state().is_completed(), state().message
    return run


def test_gc_as_a_deployment_only_shows_until_it_is_asked_to_free_and_the_version_is_proved_behind_it(
    stack: RunningStack,
) -> None:
    runner, ws = stack.as_account("runner"), stack.ws
    version = runner.run(ws, "--with", "prune.alpha=0.25")["version"]
    finished = ws.work / read_json(ws.masks / "manifest.json")["fingerprint"]
    junk = ws.root / ".dvc" / "cache" / "files" / "md5" / "aa" / ("b" * 30)
    junk.parent.mkdir(exist_ok=True)
    junk.write_text("junk")
    gc = stack.deployed("gc")
    shown = worked(stack, gc)
    assert finished.is_dir()
    assert junk.exists()
    with stack.prefect() as client:
        (table,) = [each for each in client.read_artifacts() if each.flow_run_id == shown]
    assert table.key == "freed"
    rows = {row["what"]: row for row in json.loads(str(table.data))}
    assert rows["work of finished runs"]["bytes"] > 0
    worked(stack, gc, dry_run=False)
    assert not finished.exists()
    assert not junk.exists()
    assert "proved" in runner(ws, "dass", "verify", version, "--replay").stdout
