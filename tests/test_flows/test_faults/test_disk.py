"""Disks that fill up, or become read-only, while a run prunes."""

from pathlib import Path

import pytest

from tests.disks import check_mountable, read_only, small_disk
from tests.servers import mlflow_server
from tests.test_flows.conftest import Commands
from tests.test_flows.victim import Victim

pytestmark = pytest.mark.slow


@pytest.mark.faults("the disk is full")
@pytest.mark.parametrize("where", [".", "mlartifacts", ".dvc/cache"])
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_when_there_is_room(where: str, victim: Victim) -> None:
    with small_disk(victim.ws.root / where) as disk:
        with victim.pruning() as run:
            disk.fill()
            victim.ends(run, "No space left on device", "Free space or permissions are needed there")
        disk.free()
        victim.goes_on()


@pytest.mark.faults("the disk of MLflow's server is full")
def test_a_server_whose_artifact_store_is_full_is_named_and_gets_one_version_later(
    victim: Victim, tmp_path: Path
) -> None:
    check_mountable()
    store = tmp_path / "mlflow"
    with (
        small_disk(store / "server") as disk,
        mlflow_server(f"sqlite:///{store}/db", store) as uri,
    ):
        victim.commands = Commands({**victim.commands.environment, "MLFLOW_TRACKING_URI": uri})
        with victim.pruning() as run:
            disk.fill()
            victim.ends(run, uri)
        disk.free()
        victim.goes_on()


@pytest.mark.faults("the disk is read-only", times=2)
def test_a_disk_that_becomes_read_only_is_named_and_the_run_goes_on_when_it_can_be_written(victim: Victim) -> None:
    check_mountable()
    with victim.pruning() as run, read_only(victim.ws.root):
        victim.ends(run, "Read-only file system", "Free space or permissions are needed there")
        victim.fails("Read-only file system", str(victim.ws.private))
    victim.goes_on()
