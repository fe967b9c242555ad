"""The embedded store's database is complete or not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace

ROOT = Path(__file__).parents[3]
_USE = """
import sys
from pathlib import Path
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace

with tracking(Workspace(Path(sys.argv[1]))) as client:
    client.search_experiments()
"""


def partials(folder: Path) -> list[Path]:
    return list(folder.glob(".mlflow.db.*"))


@pytest.mark.faults("kill -9 while MLflow makes its tables")
def test_a_process_killed_while_mlflow_makes_its_tables_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    making = subprocess.Popen([sys.executable, "-c", _USE, str(tmp_path)], cwd=ROOT)
    while not any(path.exists() and path.stat().st_size > 50_000 for path in partials(tmp_path)):
        assert making.poll() is None, "it was made before it could be killed"
        time.sleep(0.002)
    making.send_signal(signal.SIGKILL)
    making.wait()
    assert not (tmp_path / "mlflow.db").exists()
    with tracking(Workspace(tmp_path)) as client:
        made = client.create_experiment("first")
        assert client.get_experiment(made).name == "first"
    assert partials(tmp_path) == []


def test_an_empty_file_is_no_database_yet(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with tracking(Workspace(tmp_path)) as client:
        [default] = client.search_experiments()
        assert default.artifact_location == (tmp_path / "mlartifacts" / "0").as_uri()
    assert sorted(os.listdir(tmp_path)) == [".dass", "mlflow.db"]
