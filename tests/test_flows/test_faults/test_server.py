"""Servers that go away while a run prunes: Prefect's, MLflow's, and the database behind MLflow's."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.workspace.folder import Workspace
from tests.servers import Postgres, Served, mlflow_of, postgres, prefect_of
from tests.test_flows.conftest import Commands
from tests.test_flows.victim import SECONDS, Victim

pytestmark = pytest.mark.slow

LOGIN = "dass:of-this-test"
_SHORT = {"DASS_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Of what a run that finds nobody waits for."""


@dataclass(frozen=True)
class Tracking:
    """MLflow's server and the Postgres behind it."""

    database: Postgres
    server: Served


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    with postgres() as database:
        server = mlflow_of(database.uri, tmp_path_factory.mktemp("mlflow"), database.environment)
        server.start()
        try:
            yield Tracking(database, server)
        finally:
            server.stop()


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("hit", "mend", "alpha"),
    [
        pytest.param(
            lambda of: of.database.stop(),
            lambda of: of.database.start(),
            "0.3",
            marks=pytest.mark.faults("the database is down in the middle of a run"),
            id="database stopped",
        ),
        pytest.param(
            lambda of: of.database.kill(),
            lambda of: of.database.start(),
            "0.4",
            marks=pytest.mark.faults("kill -9 of Postgres"),
            id="database killed",
        ),
        pytest.param(
            lambda of: of.server.kill(),
            lambda of: of.server.start(),
            "0.6",
            marks=pytest.mark.faults("kill -9 of MLflow's server"),
            id="server killed",
        ),
    ],
)
def test_a_run_whose_tracking_server_goes_away_prunes_on_and_the_next_one_registers(
    hit: Callable[[Tracking], None],
    mend: Callable[[Tracking], None],
    alpha: str,
    commands: Commands,
    new_workspace: Callable[[], Workspace],
    tracking: Tracking,
) -> None:
    known = Commands({**commands.environment, "MLFLOW_TRACKING_URI": tracking.server.uri})
    victim = Victim(known, new_workspace(), ("--with", f"prune.alpha={alpha}"))  # a result of its own
    with victim.pruning(**_SHORT) as run:
        hit(tracking)
        victim.ends(run, f"MLflow at {tracking.server.uri}")
    assert (victim.ws.metrics / "evaluation.json").exists()  # all but the registration was done
    mend(tracking)
    victim.goes_on()


@pytest.fixture
def prefect(commands: Commands, tmp_path: Path) -> Iterator[Served]:
    """Prefect's server, with a database that is made already."""
    home = tmp_path / "prefect"
    home.mkdir()
    with (
        closing(sqlite3.connect(Path(commands.environment["PREFECT_HOME"]) / "prefect.db")) as ready,
        closing(sqlite3.connect(home / "prefect.db")) as own,
    ):
        ready.backup(own)
    server = prefect_of(home, LOGIN)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def reporting(victim: Victim, prefect: Served) -> Victim:
    """Its runs report to that server."""
    known = {"PREFECT_API_URL": f"{prefect.uri}/api", "PREFECT_API_AUTH_STRING": LOGIN}
    victim.commands = Commands({**victim.commands.environment, **known})
    return victim


@pytest.mark.faults("kill -9 of Prefect's server")
def test_a_run_whose_prefect_server_goes_away_does_its_work_and_names_it_at_the_end(
    reporting: Victim, prefect: Served
) -> None:
    with reporting.pruning(PREFECT_CLIENT_MAX_RETRIES="1") as run:
        prefect.kill()
        reporting.ends(run, f"The Prefect server at {prefect.uri}/api fell silent", "Finished layers are kept")
    again = json.loads(reporting.commands(reporting.ws, "dass", "run", "--json").stdout)
    assert again["version"] == "1"
    reporting.holds("1")


@pytest.mark.faults("Prefect's server is restarted while a run works")
def test_a_run_goes_on_through_a_restart_of_prefects_server(reporting: Victim, prefect: Served) -> None:
    with reporting.pruning(PREFECT_CLIENT_MAX_RETRIES="6") as run:  # room for a busy machine
        reporting.note_layers()
        prefect.stop()
        prefect.start()
        _, errors = run.communicate(timeout=SECONDS)
        assert run.returncode == 0, errors
    reporting.holds("1")
