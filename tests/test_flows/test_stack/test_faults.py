"""The stack while a run works: Postgres is killed, which `dass stack up` mends, or a login is changed."""

import psutil
import pytest

from flows.stack.accounts import Server
from tests.test_flows.test_stack.conftest import RunningStack, answer
from tests.test_flows.victim import Victim

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
