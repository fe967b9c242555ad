"""The stack while a run works: Postgres is killed, or the worker with its run, which `dass stack up` mends, or a login
is changed."""

import json

import psutil
import pytest

from flows.stack.accounts import Server
from tasks.workspace.folder import Workspace
from tests.test_flows.test_compress import wait_for
from tests.test_flows.test_stack.conftest import RunningStack, answer
from tests.test_flows.victim import SECONDS, Victim, layers_of

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

_LONG = "calibration.samples=300"  # layers take long enough to be met


def kill(stack: RunningStack, service: str) -> None:
    """kill -9 of a service and of all that it has started."""
    state = stack.place.state()
    assert state is not None
    leader = psutil.Process(state.services[service].pid)
    for process in (leader, *leader.children(recursive=True)):
        process.kill()


def mend(stack: RunningStack) -> list[str]:
    """What `dass stack up` had to start."""
    started: list[str] = answer(stack.commands(stack.ws, "dass", "stack", "up", "--json"))["started"]
    return started


@pytest.mark.faults("kill -9 of Postgres")
def test_a_run_whose_stack_loses_its_database_says_so_and_the_next_one_goes_on(stack: RunningStack) -> None:
    victim = Victim(stack.as_account("runner"), stack.ws, ("--with", _LONG, "--with", "prune.alpha=0.3"))
    with victim.pruning(DASS_TIMEOUT="10", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1") as run:
        kill(stack, "postgres")
        victim.ends(run, "http://127.0.0.1:")
    assert mend(stack) == ["postgres"]
    victim.goes_on()


@pytest.mark.faults("credentials expire or change")
def test_a_run_whose_login_is_changed_names_it_and_goes_on_with_the_new_one(stack: RunningStack) -> None:
    login = stack.login("runner")
    uri, name, old = (login[f"MLFLOW_TRACKING_{what}"] for what in ("URI", "USERNAME", "PASSWORD"))
    admin = Server(uri, stack.place.secret("mlflow-admin"))

    def change(password: str) -> None:
        admin("PATCH", "2.0/mlflow/users/update-password", username=name, password=password)

    victim = Victim(stack.as_account("runner"), stack.ws, ("--with", _LONG, "--with", "prune.alpha=0.4"))
    with victim.pruning() as run:
        change("another-password-of-the-runner")
        victim.ends(run, f"MLflow at {uri}", status=2)
    victim.fails(f"MLFLOW_TRACKING_URI is {uri}", "login", status=2)
    change(old)
    victim.goes_on()


@pytest.mark.faults("kill -9 of a worker and its run")
def test_a_run_killed_with_its_worker_frees_its_slot_and_the_one_that_waits_goes_on_behind_it(
    stack: RunningStack,
) -> None:
    by_hand, ws = stack.deployed("by-hand"), stack.ws
    there = Workspace(ws.private / "checkout", keeper=ws.root)
    asked = {"changes": [_LONG, "prune.alpha=0.45"]}
    with stack.prefect() as client:

        def state(run: object) -> str:
            found = client.read_flow_run(run.id).state  # type: ignore[attr-defined]
            assert found is not None
            return f"{found.type.value}: {found.message}"

        first = client.create_flow_run_from_deployment(by_hand, parameters=asked)
        known = layers_of(there)
        wait_for(lambda: bool(layers_of(there).keys() - known.keys()) or state(first)[0] in "CF", seconds=SECONDS)
        second = client.create_flow_run_from_deployment(by_hand, parameters=asked)
        kill(stack, "worker")
        layers = layers_of(there)
        assert layers.keys() - known.keys(), state(first)
        assert state(first).startswith("RUNNING")
        told = stack.as_account("runner")(ws, "dass", "status", "--json", status=None).stdout
        (stuck,) = [each for each in json.loads(told)["stuck"] if each["what"] == "flow run"]
        assert f"{first.name} (compress) of a deployment was lost (its process was killed)" in stuck["told"]
        assert mend(stack) == ["worker"]
        assert state(first).startswith("CRASHED: Its process was killed. Finished layers are kept")
        wait_for(lambda: state(second)[0] in "CF", seconds=SECONDS)
        assert state(second).startswith("COMPLETED"), state(second)
        assert [tag for tag in client.read_flow_run(second.id).tags if tag.startswith("version ")]
    kept = layers_of(there)
    assert {path: kept.get(path) for path in layers} == layers, "a finished layer was done again"
    assert list((ws.private / "flow-runs").iterdir()) == []
